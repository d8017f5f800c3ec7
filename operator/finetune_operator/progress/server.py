"""Connections to the receiver: bounded in number, and in how long they may say nothing."""

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

HANDSHAKE_SECONDS = 10.0
FIRST_REQUEST_SECONDS = 15.0
SILENT_SECONDS = 90.0
"""Longer than a step's heartbeat."""
SWEEP_SECONDS = 5.0
MOST_CONNECTIONS = 4000

SILENT_LOG = logging.Logger("silent", level=logging.CRITICAL + 1)
log = logging.getLogger(__name__)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Connections(web.Server):
    """aiohttp's server, which ends connections that were silent for too long."""

    def __init__(self, handler: Handler) -> None:
        """Serve requests by `handler`."""
        # aiohttp's own log would hold the beginnings of headers, tokens among them.
        super().__init__(
            self._hear, keepalive_timeout=SILENT_SECONDS, lingering_time=1.0, logger=SILENT_LOG
        )
        self._handler = handler
        self._until: dict[RequestHandler, float] = {}

    async def _hear(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            answer = await self._handler(request)
        except web.HTTPException:
            raise
        except (
            Exception
        ):  # the one place where a request's failure is decided: it is told, and answered
            log.exception("A report could not be taken")
            return web.json_response({"message": "a defect of the receiver"}, status=500)
        self._until[request.protocol] = time.monotonic() + SILENT_SECONDS
        return answer

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Take a connection, unless there are too many."""
        super().connection_made(handler, transport)
        self._until[handler] = time.monotonic() + FIRST_REQUEST_SECONDS
        if len(self._until) > MOST_CONNECTIONS:
            transport.abort()

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Forget a connection."""
        super().connection_lost(handler, exc)
        self._until.pop(handler, None)

    async def sweep(self) -> None:
        """End silent connections until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.monotonic()
            for handler, until in list(self._until.items()):
                if now > until and handler.transport is not None:
                    handler.transport.abort()


async def serve(handler: Handler, *, port: int, tls: ssl.SSLContext) -> None:
    """Serve until cancelled.

    Raises:
        OSError: the port is taken.
    """
    connections = Connections(handler)
    server = await asyncio.get_running_loop().create_server(
        connections, port=port, ssl=tls, ssl_handshake_timeout=HANDSHAKE_SECONDS, backlog=512
    )
    try:
        await connections.sweep()
    finally:
        server.close()
        await connections.shutdown(1.0)
