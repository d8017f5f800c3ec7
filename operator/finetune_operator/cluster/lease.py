"""Which of several operators acts: one Lease, 15 s long, renewed every 2 s, given up after 10 s.

The times are those of Kubernetes' own controllers. A holder that cannot renew stops writing five
seconds before anybody else may take over.
"""

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import Any

import orjson

from finetune_operator.cluster.client import ApiError, ApiServer, path_of
from finetune_operator.settings import Lease

DURATION_SECONDS = 15
RENEW_WITHIN_SECONDS = 10.0
PERIOD_SECONDS = 2.0
GROUP = "/apis/coordination.k8s.io/v1"

log = logging.getLogger(__name__)


class LeaseLost(Exception):
    """Another operator leads, or the API server cannot be reached for too long."""


class Election:
    """One operator's part in the election."""

    def __init__(self, api: ApiServer, lease: Lease, identity: str) -> None:
        """Take part under a name that no other operator has; `api` must let it write the Lease."""
        self._api, self._lease, self._identity = api, lease, identity
        self._path = path_of("leases", lease.namespace, lease.name, group=GROUP)
        self._renewed = 0.0
        self._holds = False
        self._seen: tuple[str, str] = ("", "")
        self._seen_at = 0.0

    @property
    def leads(self) -> bool:
        """Tell whether this operator may write now."""
        return self._holds and time.monotonic() - self._renewed < RENEW_WITHIN_SECONDS

    async def acquire(self) -> None:
        """Return when this operator leads."""
        while not await self._try():
            await asyncio.sleep(PERIOD_SECONDS)
        log.info("Leading as %s", self._identity)

    async def keep(self) -> None:
        """Renew until cancelled.

        Raises:
            LeaseLost: it could not be renewed in time.
        """
        while True:
            await asyncio.sleep(PERIOD_SECONDS)
            if not await self._try() and not self.leads:
                self._holds = False
                raise LeaseLost(f"{self._identity} leads no longer")

    async def release(self) -> None:
        """Let another operator take over at once."""
        if not self.leads:
            return
        self._holds = False
        try:
            lease = orjson.loads(await self._api.get(self._path))
            if lease["spec"].get("holderIdentity") == self._identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                await self._api.call("PUT", self._path, body=lease)
        except ApiError as error:
            log.warning("The lease was not released: %s", error)

    async def _try(self) -> bool:
        """Take or renew the Lease; return whether this operator holds it."""
        started = time.monotonic()
        try:
            held = await asyncio.wait_for(self._take(), RENEW_WITHIN_SECONDS / 2)
        except (ApiError, TimeoutError) as error:
            log.warning("The lease could not be renewed: %s", error)
            return False
        if held:
            self._renewed, self._holds = started, True
        elif self._holds:
            self._holds = False
            raise LeaseLost(f"another operator took the lease of {self._identity}")
        return held

    async def _take(self) -> bool:
        try:
            lease = orjson.loads(await self._api.get(self._path))
        except ApiError as error:
            if error.status != 404:
                raise
            return await self._written("POST", {"spec": {}})
        spec = lease["spec"]
        holder = spec.get("holderIdentity") or ""
        if holder not in ("", self._identity) and not self._has_expired(spec):
            return False
        return await self._written("PUT", lease)

    def _has_expired(self, spec: dict[str, Any]) -> bool:
        """Tell whether a holder was silent for its time, by this computer's clock alone."""
        seen = (str(spec.get("holderIdentity")), str(spec.get("renewTime")))
        if seen != self._seen:
            self._seen, self._seen_at = seen, time.monotonic()
        silent = time.monotonic() - self._seen_at
        return silent > int(spec.get("leaseDurationSeconds") or DURATION_SECONDS)

    async def _written(self, method: str, lease: dict[str, Any]) -> bool:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = lease["spec"]
        changes = spec.get("holderIdentity") != self._identity
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            # With the version that was read: of two that write at once one gets a conflict.
            "metadata": lease.get(
                "metadata", {"name": self._lease.name, "namespace": self._lease.namespace}
            ),
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": DURATION_SECONDS,
                "acquireTime": now if changes else spec.get("acquireTime", now),
                "renewTime": now,
                "leaseTransitions": int(spec.get("leaseTransitions") or 0) + int(changes),
            },
        }
        path = self._path if method == "PUT" else self._path.rsplit("/", 1)[0]
        try:
            await self._api.call(method, path, body=body)
        except ApiError as error:
            if error.status == 409:
                return False
            raise
        return True
