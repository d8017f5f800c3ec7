"""The receiver with all that it needs, as one part of an operator process."""

import asyncio
import logging
from collections.abc import Callable
from urllib.parse import urlsplit

from finetune_operator.cluster.cache import Cache
from finetune_operator.cluster.client import ApiError, ApiServer
from finetune_operator.progress.identity import Identity
from finetune_operator.progress.receiver import Receiver
from finetune_operator.progress.server import serve
from finetune_operator.progress.tokens import Tokens
from finetune_operator.progress.writer import ProgressWriter
from finetune_operator.settings import Settings

AGAIN_SECONDS = 10.0

log = logging.getLogger(__name__)


class ProgressService:
    """Takes reports and writes them, whether or not this operator leads."""

    def __init__(
        self, api: ApiServer, cache: Cache, settings: Settings, count: Callable[[str], None]
    ) -> None:
        """Serve nothing yet; `api` may write at any time."""
        self._settings = settings.progress
        host = urlsplit(settings.progress.url).hostname or "localhost"
        self._identity = Identity(api, settings.lease.namespace, host)
        self.writer = ProgressWriter(api, cache)
        self._receiver = Receiver(cache, Tokens(api), self.writer, count)
        self.ready = asyncio.Event()
        """Set once it is known whether there are authorities."""

    @property
    def authorities(self) -> str:
        """Certificates that steps are to trust; empty: there is no receiver, or not yet."""
        return self._identity.bundle

    async def run(self) -> None:
        """Serve until cancelled.

        Raises:
            OSError: the port is taken.
        """
        if not (self._settings.url and self._settings.port):
            self.ready.set()
            return
        await self._identified()
        port = self._settings.port
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._identity.keep())
            tasks.create_task(serve(self._receiver.take, port=port, tls=self._identity.tls))

    async def _identified(self) -> None:
        while True:
            try:
                await self._identity.refresh()
            except ApiError as error:
                # Jobs run without it; they are told of at their steps' ends.
                log.error("No progress is received: the authorities were not made: %s", error)
                self.ready.set()
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                self.ready.set()
                return
