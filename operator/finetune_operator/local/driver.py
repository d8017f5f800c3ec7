"""Runs the loop on this computer until nothing is left to do, or until told to stop."""

import asyncio
import contextlib
import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from finetune_api.errors import Refusal
from finetune_api.finetunejob import FineTuneJob
from finetune_api.modelexport import ModelExport
from finetune_operator.kinds import DECISIONS
from finetune_operator.local.backend import LocalBackend
from finetune_operator.local.store import Store
from finetune_operator.loop import WorkQueue, work
from finetune_operator.plan import Event, Key

POLL_SECONDS = 0.15
WORKERS = 4
SOON_SECONDS = 2.0


class AlreadyDriven(Refusal):
    """Another process runs the loop on this state folder; it takes what was applied."""


@contextmanager
def driving(store: Store) -> Iterator[None]:
    """Be the only process that runs the loop on a state folder.

    Raises:
        AlreadyDriven: another one is.
    """
    store.root.mkdir(parents=True, exist_ok=True)
    with (store.root / "driver.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyDriven([f"another `finetune local` runs on {store.root}"]) from None
        yield


class Driver:
    """One run of the loop."""

    def __init__(
        self, store: Store, keys: list[Key], on_event: Callable[[Key, Event], None]
    ) -> None:
        """Drive some objects, those they refer to, and what others apply meanwhile."""
        self.backend = LocalBackend(store, on_event)
        self._store = store
        self._keys = related(store, keys)
        self._known = dict(store.stamp())
        self._queue = WorkQueue()
        self._stopping = False

    def stop(self) -> None:
        """Let all steps save, then end; the objects stay as they are and go on next time."""
        self._stopping = True
        self.backend.processes.stop_all()

    def kill(self) -> None:
        """End all steps at once."""
        self._stopping = True
        self.backend.processes.kill_all()

    async def run(self, on_tick: Callable[[], None]) -> None:
        """Drive until no step runs and no decision is due; `on_tick` is called between."""
        workers = [
            asyncio.create_task(work(self._queue, self.backend, DECISIONS)) for _ in range(WORKERS)
        ]
        seen: object = None
        try:
            while not self._is_over(seen):
                seen = self._wake_if_changed(seen)
                self._queue.release_due()
                on_tick()
                await asyncio.sleep(POLL_SECONDS)
            on_tick()
        finally:
            for worker in workers:
                worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*workers)

    def _wake_if_changed(self, seen: object) -> object:
        """Wake the objects when anything changed; they are few, and decisions are cheap."""
        stamp = (self._store.stamp(), self.backend.processes.stamp(), self._status_stamp())
        if stamp != seen and not self._stopping:
            self._take_applied()
            for key in self._keys:
                self._queue.add(key)
        return stamp

    def _take_applied(self) -> None:
        """Drive also what another process applied since: it left that to us."""
        for key, time in self._store.stamp():
            if self._known.get(key) != time:
                self._known[key] = time
                self._keys = related(self._store, [*self._keys, key])

    def _status_stamp(self) -> tuple[object, ...]:
        paths = (self._store.root / "status").glob("*/*/[!.]*.json")
        return tuple(sorted((str(path), path.stat().st_mtime_ns) for path in paths))

    def _is_over(self, seen: object) -> bool:
        if self.backend.processes.running():
            return False
        if self._stopping:
            return True
        if seen is None:
            return False
        stamp = (self._store.stamp(), self.backend.processes.stamp(), self._status_stamp())
        # A deadline far off (a ttl, say) is left to the next time the loop runs.
        return stamp == seen and self._queue.is_idle(within=SOON_SECONDS)


def related(store: Store, keys: list[Key]) -> list[Key]:
    """Return the objects together with those they refer to."""
    found = list(dict.fromkeys(keys))
    for key in keys:
        resource = store.get(key)
        names: list[Key] = []
        if isinstance(resource, FineTuneJob):
            references = [*resource.spec.datasets, *(resource.spec.eval_datasets or [])]
            names = [Key("DatasetRegistration", key.namespace, r.name) for r in references]
        elif isinstance(resource, ModelExport) and resource.spec.source.job_ref:
            names = [Key("FineTuneJob", key.namespace, resource.spec.source.job_ref.name)]
        found += [name for name in names if name not in found and store.get(name)]
    return found
