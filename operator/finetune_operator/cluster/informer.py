"""A current copy of one resource: listed, watched, and after a gap listed again and compared."""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Generic, TypeVar

import msgspec

from finetune_operator.cluster.client import ApiError, ApiServer
from finetune_operator.cluster.records import (
    Record,
    WatchEvent,
    decode_event,
    decode_page,
    name_of,
    version_of,
)

R = TypeVar("R", bound=Record)
Name = tuple[str, str]
"""Namespace and name."""

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0

log = logging.getLogger(__name__)


class Informer(Generic[R]):
    """The objects of one resource in one namespace, or in all."""

    def __init__(
        self,
        api: ApiServer,
        path: str,
        decode: Callable[[bytes | msgspec.Raw], R],
        on_change: Callable[[R | None, R | None], None],
        *,
        selector: str = "",
    ) -> None:
        """Tell `on_change(old, new)` of every difference; nothing is read until `run`."""
        self._api, self.path, self._selector = api, path, selector
        self._decode, self._on_change = decode, on_change
        self.objects: dict[Name, R] = {}
        self.synced = asyncio.Event()
        self.last_heard = time.monotonic()
        self._gone: dict[str, int] = {}
        """Versions at which objects vanished, by UID: a late answer must not bring them back."""

    async def run(self) -> None:
        """Keep the copy current until cancelled."""
        pause = FIRST_PAUSE_SECONDS
        version = ""
        while True:
            try:
                if not version:
                    version = await self._list()
                version = await self._watch(version)
                pause = FIRST_PAUSE_SECONDS
            except ApiError as error:
                if error.status in (410, 400):
                    version = ""
                log.warning("Watch of %s: %s; going on", self.path, error)
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    async def relist(self) -> None:
        """Make the copy as current as the API server is now, however long that takes."""
        while True:
            try:
                await self._list()
            except ApiError as error:
                log.warning("List of %s: %s; trying again", self.path, error)
                await asyncio.sleep(FIRST_PAUSE_SECONDS * random.uniform(1.0, 3.0))
            else:
                return

    async def _list(self) -> str:
        """Read everything; tell what came, changed, and vanished unseen."""
        version, found = "", set[Name]()
        async for content in self._api.pages(self.path, selector=self._selector):
            page = decode_page(content)
            version = version or page.metadata.resource_version
            for raw in page.items:
                found.add(name_of(raw))
                if (record := self._read(raw)) is not None:
                    self._take(record)
        self.last_heard = time.monotonic()
        listed = int(version)
        for name in [name for name in self.objects if name not in found]:
            # What was written after the list began is newer than the list, not absent from it.
            if self.objects[name].metadata.version <= listed:
                self._drop(self.objects[name], at=listed)
        self.synced.set()
        return version

    async def _watch(self, version: str) -> str:
        """Follow changes until the stream ends; return the version reached."""
        stream = self._api.watch(self.path, version=version, selector=self._selector)
        async with aclosing(stream) as lines:  # or its connection lives until it is collected
            async for line in lines:
                self.last_heard = time.monotonic()
                event = decode_event(line)
                version = version_of(event.object) or version
                self._tell(event)
        self.last_heard = time.monotonic()
        return version

    def _tell(self, event: WatchEvent) -> None:
        """Take one line of a watch."""
        if event.type == "ERROR":
            status = msgspec.json.decode(event.object)
            raise ApiError(int(status.get("code", 0)), str(status.get("message", "")))
        record = None if event.type == "BOOKMARK" else self._read(event.object)
        if record is None:
            return
        if event.type == "DELETED":
            self._drop(record, at=record.metadata.version)
        else:
            self._take(record)

    def learn(self, body: bytes | msgspec.Raw) -> None:
        """Take an answer, to a write of our own above all: it must be seen before more is decided."""
        self._take(self._decode(body))

    def _read(self, raw: bytes | msgspec.Raw) -> R | None:
        """Return a record; one that cannot be read must not end the copies of all others."""
        try:
            return self._decode(raw)
        except ValueError as error:
            log.error("%s %s cannot be read: %s", self.path, "/".join(name_of(raw)), error)
            return None

    def _take(self, record: R) -> None:
        name, meta = _name(record), record.metadata
        old = self.objects.get(name)
        # Versions of a resource are comparable: an object of the same name, too, came before or after.
        if old is not None and old.metadata.version >= meta.version:
            return
        if meta.version <= self._gone.get(meta.uid, -1):
            return
        if old is not None and old.metadata.uid != meta.uid:
            self._bury(old.metadata.uid, meta.version)
        self.objects[name] = record
        self._on_change(old, record)

    def _bury(self, uid: str, version: int) -> None:
        self._gone[uid] = max(version, self._gone.get(uid, 0))
        while len(self._gone) > 1000:
            self._gone.pop(next(iter(self._gone)))

    def _drop(self, record: R, *, at: int) -> None:
        name, meta = _name(record), record.metadata
        old = self.objects.get(name)
        self._bury(meta.uid, at)
        if old is None or old.metadata.uid != meta.uid:
            return
        del self.objects[name]
        # The last state is told too: a pod's last word may stand in it alone.
        self._on_change(record, None)


def _name(record: Record) -> Name:
    return record.metadata.namespace, record.metadata.name
