"""Events: told once each, under a name that follows from what they say; and read, of pods."""

import hashlib
import logging

import orjson

from finetune_api.base import API_VERSION
from finetune_operator.cluster.client import ApiError, ApiServer, path_of
from finetune_operator.conditions import timestamp
from finetune_operator.loop import utc_now
from finetune_operator.plan import Event, Key

COMPONENT = "finetune-operator"
LONGEST_MESSAGE = 1024
READ = "20"

log = logging.getLogger(__name__)


class Events:
    """Events of objects."""

    def __init__(self, api: ApiServer) -> None:
        """Use an API server."""
        self._api = api

    async def tell(self, key: Key, uid: str, event: Event) -> None:
        """Tell one event; a lost one is no reason to decide again."""
        now = timestamp(utc_now())
        text = f"{uid}/{event.reason}/{event.message}/{now[:-4]}"
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{key.name}.{hashlib.sha256(text.encode()).hexdigest()[:16]}",
                "namespace": key.namespace,
            },
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": key.kind,
                "namespace": key.namespace,
                "name": key.name,
                "uid": uid,
            },
            "type": "Warning" if event.is_warning else "Normal",
            "reason": event.reason,
            "message": event.message[:LONGEST_MESSAGE],
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            await self._api.create(path_of("events", key.namespace), body)
        except ApiError as error:
            if error.status != 409:
                log.warning("Event %s of %s was lost: %s", event.reason, "/".join(key), error)

    async def of(self, namespace: str, uid: str) -> list[tuple[str, str]]:
        """Return reason and message of an object's events, oldest first."""
        selector = f"involvedObject.uid={uid}"
        content = await self._api.get(
            path_of("events", namespace), fieldSelector=selector, limit=READ
        )
        items = orjson.loads(content)["items"]
        items.sort(key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime") or ""))
        return [(str(e.get("reason", "")), str(e.get("message", ""))) for e in items]
