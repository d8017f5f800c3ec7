"""The only way to the API server: REST paths, bytes in and out, one connection pool."""

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson

from finetune_api.base import GROUP, VERSION
from finetune_api.objects import plural
from finetune_operator.cluster.login import Login
from finetune_operator.loop import Conflict, Unavailable

FIELD_MANAGER = "finetune-operator"
CALL_TIMEOUT_SECONDS = 20.0
SILENT_WATCH_SECONDS = 90.0
"""Bookmarks come about every minute: a watch that is silent for longer is dead."""
WATCH_SECONDS = 300
PAGE = 500
MAX_LINE_BYTES = 16 << 20


class ApiError(Unavailable):
    """The API server refused a call, or could not be reached (status 0)."""

    def __init__(self, status: int, message: str, *, reason: str = "") -> None:
        """Keep the status code and what the server said."""
        super().__init__(f"{status} {reason}: {message}")
        self.status, self.reason, self.message = status, reason, message


class NotLeading(Conflict):
    """This operator may not write: another one leads."""


class Changed(ApiError, Conflict):
    """The object is no longer the one that was decided on (409)."""


class ApiServer:
    """Calls to one API server."""

    def __init__(
        self,
        login: Login,
        *,
        may_write: Callable[[], bool] = lambda: True,
        measure: Callable[[str, int, float], None] = lambda *_: None,
    ) -> None:
        """Use a login; `may_write` is asked before each write, `measure` told after each call."""
        self._login, self._may_write, self._measure = login, may_write, measure
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "ApiServer":
        """Open the pool."""
        connector = aiohttp.TCPConnector(ssl=self._login.tls or False, limit=64)
        self._session = aiohttp.ClientSession(
            base_url=self._login.server, connector=connector, json_serialize=_text
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the pool."""
        assert self._session is not None
        await self._session.close()

    async def call(
        self,
        method: str,
        path: str,
        *,
        parameters: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> bytes:
        """Make one call and return the answer's body.

        Raises:
            ApiError: refused, or not reached. NotLeading: a write, and another operator leads.
        """
        if method != "GET" and not self._may_write():
            raise NotLeading
        assert self._session is not None, "the pool is open"
        headers = {**self._login.headers(), "Content-Type": content_type}
        started, status = time.monotonic(), 0
        try:
            async with self._session.request(
                method,
                path,
                params=parameters,
                data=None if body is None else orjson.dumps(body),
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT_SECONDS),
            ) as answer:
                content = await answer.read()
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, f"{method} {path}: {type(error).__name__}: {error}") from error
        finally:
            self._measure(method, status, time.monotonic() - started)
        if status >= 400:
            raise _refusal(status, content)
        return content

    async def get(self, path: str, **parameters: str) -> bytes:
        """Read one object or list."""
        return await self.call("GET", path, parameters=parameters)

    async def create(self, path: str, body: Mapping[str, Any]) -> bytes:
        """Create one object."""
        return await self.call("POST", path, parameters={"fieldManager": FIELD_MANAGER}, body=body)

    async def patch(self, path: str, body: Any, *, manager: str = FIELD_MANAGER) -> bytes:
        """Change named fields (JSON merge patch)."""
        return await self.call(
            "PATCH",
            path,
            parameters={"fieldManager": manager},
            body=body,
            content_type="application/merge-patch+json",
        )

    async def delete(
        self, path: str, *, uid: str, grace_seconds: int | None = None, foreground: bool = False
    ) -> None:
        """Delete one object, if it still is the one that was seen; gone already is fine.

        Raises:
            Changed: it is not, or not as it was; what is there now has to be looked at.
        """
        options: dict[str, Any] = {"preconditions": {"uid": uid}}
        options["propagationPolicy"] = "Foreground" if foreground else "Background"
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        try:
            await self.call("DELETE", path, body=options)
        except ApiError as error:
            if error.status != 404:
                raise

    async def pages(self, path: str, *, selector: str = "") -> AsyncIterator[bytes]:
        """Yield the pages of a complete, current list."""
        parameters = {"limit": str(PAGE), **({"labelSelector": selector} if selector else {})}
        while True:
            content = await self.call("GET", path, parameters=parameters)
            yield content
            token = orjson.loads(content)["metadata"].get("continue")
            if not token:
                return
            parameters["continue"] = token

    async def watch(
        self, path: str, *, version: str, selector: str = ""
    ) -> AsyncGenerator[bytes, None]:
        """Yield the lines of a watch until it ends.

        Raises:
            ApiError: refused, cut off, or silent for too long.
        """
        parameters = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
            **({"labelSelector": selector} if selector else {}),
        }
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CALL_TIMEOUT_SECONDS, sock_read=SILENT_WATCH_SECONDS
        )
        assert self._session is not None, "the pool is open"
        try:
            async with self._session.get(
                path, params=parameters, headers=self._login.headers(), timeout=timeout
            ) as answer:
                if answer.status >= 400:
                    raise _refusal(answer.status, await answer.read())
                async for line in _lines(answer.content):
                    yield line
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, f"watch {path}: {type(error).__name__}: {error}") from error


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield lines of any length up to a bound; aiohttp's own reader stops at 64 KiB."""
    rest = bytearray()
    async for chunk in content.iter_any():
        rest += chunk
        if len(rest) > MAX_LINE_BYTES:
            raise ApiError(0, f"a line of a watch has more than {MAX_LINE_BYTES} bytes")
        *whole, last = bytes(rest).split(b"\n")
        for line in whole:
            if line:
                yield line
        rest = bytearray(last)


def _refusal(status: int, content: bytes) -> ApiError:
    try:
        found = orjson.loads(content)
        kind = Changed if status == 409 else ApiError
        return kind(status, str(found.get("message", "")), reason=str(found.get("reason", "")))
    except (ValueError, AttributeError):
        return ApiError(status, content[:500].decode(errors="replace"))


def _text(value: Any) -> str:
    return json.dumps(value)


CORE, BATCH, NETWORKING = "/api/v1", "/apis/batch/v1", "/apis/networking.k8s.io/v1"


def path_of(resource: str, namespace: str, name: str = "", *, group: str = CORE) -> str:
    """Return the path of a resource of a namespace; of all namespaces if that is empty."""
    where = f"/namespaces/{quote(namespace)}" if namespace else ""
    return f"{group}{where}/{resource}" + (f"/{quote(name)}" if name else "")


def path_of_kind(kind: str, namespace: str, name: str = "") -> str:
    """Return the path of objects of one of our kinds."""
    return path_of(plural(kind), namespace, name, group=f"/apis/{GROUP}/{VERSION}")
