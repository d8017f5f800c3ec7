"""A way to the API server that can be cut, and that can kill its caller once a write was delivered."""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

WRITES = ("POST", "PUT", "PATCH", "DELETE")


@dataclass(frozen=True)
class Write:
    """A write that the API server has carried out, or refused."""

    method: str
    path: str
    status: int


class Proxy:
    """Plain HTTP on a local port, TLS to the API server."""

    def __init__(self, server: str, certificate: str) -> None:
        """Prepare; `start` opens the port."""
        self._server = server
        self._tls = ssl.create_default_context(cafile=certificate)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.after_write: Callable[[Write], bool] = lambda _: False
        """Called after each write; true: its answer is lost."""
        self.writes: list[Write] = []
        self.is_cut = False
        self.url = ""

    def start(self) -> "Proxy":
        """Open the port."""
        self._thread.start()
        self._run(self._open())
        return self

    def stop(self) -> None:
        """Close the port."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def cut(self) -> None:
        """Let nothing through, and end what is open."""
        self.is_cut = True
        self._run(self._end_streams())

    def mend(self) -> None:
        """Let everything through again."""
        self.is_cut = False

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _open(self) -> None:
        self._streams: set[asyncio.Task[Any]] = set()
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=0)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        application = web.Application(client_max_size=8 << 20)
        application.router.add_route("*", "/{path:.*}", self._forward)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def _close(self) -> None:
        await self._end_streams()
        await self._runner.cleanup()
        await self._session.close()
        await asyncio.sleep(0.1)  # transports close in the loop's next rounds

    async def _end_streams(self) -> None:
        for task in list(self._streams):
            task.cancel()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            if self.is_cut:
                raise ConnectionResetError
            return await self._passed_on(request)
        finally:
            self._streams.discard(task)

    async def _passed_on(self, request: web.Request) -> web.StreamResponse:
        headers = {
            k: v for k, v in request.headers.items() if k.lower() not in ("host", "connection")
        }
        body = await request.read()
        async with self._session.request(
            request.method, self._server + request.path_qs, headers=headers, data=body or None,
            timeout=aiohttp.ClientTimeout(total=None), skip_auto_headers=("Content-Type",),
        ) as answer:  # fmt: skip
            if request.method in WRITES:
                return await self._of_write(request, answer)
            kept = ("content-type", "content-encoding")
            response = web.StreamResponse(
                status=answer.status,
                headers={k: v for k, v in answer.headers.items() if k.lower() in kept},
            )
            await response.prepare(request)
            with contextlib.suppress(ConnectionResetError):  # the caller was killed
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
            return response

    async def _of_write(
        self, request: web.Request, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        content = await answer.read()
        write = Write(request.method, request.path, answer.status)
        self.writes.append(write)
        if await asyncio.to_thread(self.after_write, write):
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError
        kept = ("content-type", "content-encoding")
        headers = {k: v for k, v in answer.headers.items() if k.lower() in kept}
        return web.Response(status=answer.status, body=content, headers=headers)
