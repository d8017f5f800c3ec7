"""Events: told once each, under a name that follows from what they say; and read, of pods."""

import asyncio
import hashlib
import logging
from typing import Any

import orjson

from finetune_api.base import API_VERSION
from finetune_operator.cluster.client import ApiError, ApiServer, path_of
from finetune_operator.conditions import timestamp
from finetune_operator.loop import Conflict, utc_now
from finetune_operator.plan import Event, Key

COMPONENT = "finetune-operator"
LONGEST_MESSAGE = 1024
READ = "20"
MOST_WAITING = 10_000

log = logging.getLogger(__name__)


class Events:
    """Events of objects."""

    def __init__(self, api: ApiServer) -> None:
        """Use an API server."""
        self._api = api
        self._told: asyncio.Queue[dict[str, Any]] = asyncio.Queue(MOST_WAITING)

    def tell(self, key: Key, uid: str, event: Event) -> None:
        """Tell one event, soon: no object waits for that, and a lost one changes no decision."""
        try:
            self._told.put_nowait(_body(key, uid, event))
        except asyncio.QueueFull:
            log.warning("Event %s of %s was lost: too many", event.reason, "/".join(key))

    async def run(self) -> None:
        """Send what is told, one after another, until cancelled."""
        while True:
            await self.send_next()

    async def send_next(self) -> None:
        """Wait for an event and send it."""
        body = await self._told.get()
        meta = body["metadata"]
        try:
            await self._api.create(path_of("events", meta["namespace"]), body)
        except Conflict:
            return  # it is there already, or another operator leads
        except ApiError as error:
            log.warning("Event %s was lost: %s", meta["name"], error)


async def events_of(api: ApiServer, namespace: str, uid: str) -> list[tuple[str, str]]:
    """Return reason and message of an object's events, oldest first."""
    selector = f"involvedObject.uid={uid}"
    content = await api.get(path_of("events", namespace), fieldSelector=selector, limit=READ)
    items = orjson.loads(content)["items"]
    items.sort(key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime") or ""))
    return [(str(e.get("reason", "")), str(e.get("message", ""))) for e in items]


def _body(key: Key, uid: str, event: Event) -> dict[str, Any]:
    now = timestamp(utc_now())
    text = f"{uid}/{event.reason}/{event.message}/{now[:-4]}"
    return {
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
