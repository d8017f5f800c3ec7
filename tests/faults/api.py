"""The operator's own client of a real API server, with faults between the two."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_api.base import GROUP
from finetune_operator.cluster.client import ApiError, ApiServer, Changed
from finetune_operator.cluster.login import Login
from tests.faults.plans import REFUSALS, Fault

SLOW_SECONDS = 0.4
STALE_WRITES = 5
"""How many writes before the fault a stale list was read."""
LAG_SECONDS = 1.0
"""How long the watch that follows a stale list has nothing to tell."""


@dataclass
class Faults:
    """The faults of one plan, and the life of the operators that meet them."""

    planned: tuple[Fault, ...]
    crash: Callable[[], None] = lambda: None
    writes: int = 0
    last_write: float = 0.0
    met: list[str] = field(default_factory=list)
    living: int = 1
    """Number of the operator that lives; what earlier ones still ask for is not heard."""
    cut: asyncio.Event = field(default_factory=asyncio.Event)
    gone: int = 0
    """How many watches still find their version too old."""
    stale: bool = False
    asked: dict[str, dict[str, str]] = field(default_factory=dict)
    """Parameters of the lists of our kinds that were asked for, by path."""
    lists: dict[str, bytes] = field(default_factory=dict)
    """Lists as they were some writes ago."""
    lagging: set[str] = field(default_factory=set)
    log: list[str] = field(default_factory=list)

    def at_this_write(self) -> list[Fault]:
        """Count a write; return what goes wrong with it."""
        self.writes += 1
        self.last_write = time.monotonic()
        found = [fault for fault in self.planned if fault.at == self.writes]
        self.met += map(str, found)
        return found

    def end_watches(self) -> None:
        """End every watch that is open."""
        self.cut.set()
        self.cut = asyncio.Event()


@dataclass(frozen=True)
class FaultyLogin(Login):
    """A login that leads through faults."""

    faults: Faults = field(default_factory=lambda: Faults(()))
    number: int = 1


class FaultyApiServer(ApiServer):
    """Calls that go wrong by plan. Everything that is carried out is carried out by the real server."""

    def __init__(self, login: Login, **settings: Any) -> None:
        super().__init__(login, **settings)
        assert isinstance(login, FaultyLogin)
        self._faults, self._number = login.faults, login.number

    def _require_life(self) -> None:
        if self._number != self._faults.living:
            raise ApiError(0, "this operator was killed")

    async def call(
        self,
        method: str,
        path: str,
        *,
        parameters: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> bytes:
        self._require_life()
        given = {"parameters": parameters, "body": body, "content_type": content_type}
        if "/leases" in path or path.endswith("tokenreviews"):
            return await super().call(method, path, **given)
        if method == "GET":
            return await self._read(path, parameters, given)
        return await self._write(method, path, given)

    async def _read(
        self, path: str, parameters: Mapping[str, str] | None, given: dict[str, Any]
    ) -> bytes:
        content = await super().call("GET", path, **given)
        if not parameters or "limit" not in parameters:
            return content
        if f"/{GROUP}/" not in path:
            return content
        if self._faults.stale and path in self._faults.lists:
            self._faults.lagging.add(path)
            return self._faults.lists.pop(path)
        self._faults.asked[path] = dict(parameters)
        return content

    async def _keep_lists(self) -> None:
        """Read what an API server that lags will still serve when the fault comes."""
        for path, parameters in self._faults.asked.items():
            content = await super().call("GET", path, parameters=parameters)
            self._faults.lists[path] = content

    async def _write(self, method: str, path: str, given: dict[str, Any]) -> bytes:
        if not self._may_write():
            return await super().call(method, path, **given)
        faults = self._faults.at_this_write()
        due = self._faults.writes + STALE_WRITES
        if any(fault.kind == "stale" and fault.at == due for fault in self._faults.planned):
            await self._keep_lists()
        kinds = {fault.kind for fault in faults}
        self._faults.log.append(f"{self._faults.writes} {method} {path} {sorted(kinds) or ''}")
        for kind in kinds & REFUSALS:
            if kind == "409":
                raise Changed(409, "a conflict by plan", reason="Conflict")
            raise ApiError(int(kind), "a refusal by plan")
        if "slow" in kinds:
            await asyncio.sleep(SLOW_SECONDS)
        try:
            content = await super().call(method, path, **given)
        finally:
            self._afterwards(kinds)
        if kinds & {"lost", "crash", "stale"}:
            raise ApiError(0, "the answer was lost by plan")
        return content

    def _afterwards(self, kinds: set[str]) -> None:
        if "gone" in kinds:
            self._faults.gone = 4
        if kinds & {"cut", "gone"}:
            self._faults.end_watches()
        if "stale" in kinds:
            self._faults.stale = True
        if kinds & {"crash", "stale"}:
            self._faults.crash()

    async def watch(
        self, path: str, *, version: str, selector: str = ""
    ) -> AsyncGenerator[bytes, None]:
        self._require_life()
        if self._faults.gone > 0:
            self._faults.gone -= 1
            raise ApiError(410, "too old by plan")
        if path in self._faults.lagging:
            self._faults.lagging.discard(path)
            await asyncio.sleep(LAG_SECONDS)
        cut = asyncio.ensure_future(self._faults.cut.wait())
        lines = super().watch(path, version=version, selector=selector)
        try:
            while True:
                following = asyncio.ensure_future(anext(lines))
                await asyncio.wait({following, cut}, return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    following.cancel()
                    await asyncio.gather(following, return_exceptions=True)
                    raise ApiError(0, "the watch was cut by plan")
                try:
                    yield following.result()
                except StopAsyncIteration:
                    return
        finally:
            cut.cancel()
            await lines.aclose()
