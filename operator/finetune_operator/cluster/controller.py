"""The operator on a cluster: copies kept current, a lease held, keys worked on."""

import asyncio
import logging
import random
import time
from contextlib import AsyncExitStack

from finetune_operator.cluster.backend import ClusterBackend
from finetune_operator.cluster.cache import Cache
from finetune_operator.cluster.client import ApiServer
from finetune_operator.cluster.lease import Election
from finetune_operator.cluster.login import Login
from finetune_operator.kinds import DECISIONS
from finetune_operator.loop import WorkQueue, work
from finetune_operator.metrics import Metrics
from finetune_operator.plan import Key
from finetune_operator.progress.service import ProgressService
from finetune_operator.settings import Settings

WORKERS = 16
TICK_SECONDS = 0.05
RESYNC_SECONDS = 600.0
SILENT_SECONDS = 180.0
"""A stream hears a bookmark every minute: older than this it is dead, and so is this process."""
SLOW_LOOP_SECONDS = 10.0

log = logging.getLogger(__name__)


class Controller:
    """One operator process."""

    def __init__(self, login: Login, settings: Settings, *, identity: str) -> None:
        """Prepare; nothing is called until `run`."""
        self._login, self._settings, self._identity = login, settings, identity
        self.queue = WorkQueue()
        self._metrics = Metrics()
        self.cache: Cache | None = None
        self.election: Election | None = None
        self._ticked = time.monotonic()

    async def run(self) -> None:
        """Work until cancelled.

        Raises:
            LeaseLost: another operator leads; this process must end.
        """
        async with AsyncExitStack() as stack:
            election_api = await stack.enter_async_context(ApiServer(self._login))
            election = self.election = Election(election_api, self._settings.lease, self._identity)
            api = await stack.enter_async_context(
                ApiServer(
                    self._login, may_write=lambda: election.leads, measure=self._metrics.called
                )
            )
            cache = self.cache = Cache(api, self._settings.namespaces, self._wake)
            # Reports are written by every replica: versions guard those writes, not the lead.
            free_api = await stack.enter_async_context(
                ApiServer(self._login, measure=self._metrics.called)
            )
            progress = ProgressService(free_api, cache, self._settings, self._metrics.reported)
            self._metrics.watch(
                queue=self.queue, cache=cache, leads=lambda: election.leads,
                most_jobs=self._settings.progress.jobs_in_metrics, writer=progress.writer,
            )  # fmt: skip
            if self._settings.metrics_port:
                self._metrics.serve(self._settings.metrics_port)
            async with asyncio.TaskGroup() as tasks:
                for informer in cache.informers:
                    tasks.create_task(informer.run())
                tasks.create_task(self._tick())
                await cache.wait_until_synced()
                tasks.create_task(progress.run())
                await election.acquire()
                tasks.create_task(self._keep(election))
                # What another operator wrote a moment ago must be seen before anything is decided.
                await asyncio.gather(*(informer.relist() for informer in cache.informers))
                await progress.ready.wait()  # steps that begin are told whom to trust
                backend = ClusterBackend(
                    api, cache, self._settings, self.queue.add_after, lambda: progress.authorities
                )
                tasks.create_task(backend.events.run())
                for _ in range(WORKERS):
                    tasks.create_task(
                        work(self.queue, backend, DECISIONS, self._metrics.reconciled)
                    )
                tasks.create_task(self._resync(cache))

    def _wake(self, key: Key) -> None:
        if key.kind in DECISIONS:
            self.queue.add(key)

    @staticmethod
    async def _keep(election: Election) -> None:
        try:
            await election.keep()
        finally:
            await asyncio.shield(election.release())

    async def _tick(self) -> None:
        """Release what is due; that this goes on proves that the loop does."""
        while True:
            self._ticked = time.monotonic()
            due = self.queue.release_due()
            await asyncio.sleep(min(max(due if due is not None else 1.0, 0.001), TICK_SECONDS))

    async def _resync(self, cache: Cache) -> None:
        """Look at everything now and then, whether anything woke it or not."""
        while True:
            for key in cache.all_keys():
                self.queue.add(key)
            await asyncio.sleep(RESYNC_SECONDS * random.uniform(0.9, 1.1))

    def faults(self) -> list[str]:
        """Return what shows that this process does not do its work."""
        now = time.monotonic()
        found = []
        if now - self._ticked > SLOW_LOOP_SECONDS:
            found.append(f"the loop has stood still for {now - self._ticked:.0f} s")
        for informer in self.cache.informers if self.cache else []:
            silent = now - informer.last_heard
            if silent > SILENT_SECONDS:
                found.append(f"nothing heard of {informer.path} for {silent:.0f} s")
        return found
