"""Wake, observe, decide, execute: the same for every kind, on a cluster and on this computer."""

import asyncio
import heapq
import logging
import math
import random
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from finetune_operator.logs import about, note
from finetune_operator.plan import Key, Observed, Plan

FIRST_DELAY_SECONDS = 0.005
LONGEST_DELAY_SECONDS = 300.0
SPARE_DELAYS = 64

DONE = "done"
log = logging.getLogger(__name__)


class Backend(Protocol):
    """Where objects live and steps run."""

    async def observe(self, key: Key) -> tuple[Any, Observed] | None:
        """Return an object with all a decision may look at; None if it is gone."""

    async def execute(self, key: Key, plan: Plan) -> None:
        """Do what a plan says; safe to repeat."""


class Unavailable(Exception):
    """Whoever has to carry a plan out refuses or is not reached; it is tried again."""


class Conflict(Exception):
    """What was decided on has changed meanwhile: nothing is wrong, it is decided again."""


def utc_now() -> datetime:
    """Return the time; the only clock that decisions ever see."""
    return datetime.now(UTC)


@dataclass(order=True)
class _Delayed:
    due: float
    key: Key = field(compare=False)


class WorkQueue:
    """Keys to look at: each once, however often it was added; failing ones ever later.

    Namespaces take turns: whoever makes a thousand objects delays nobody else's one.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._ready: OrderedDict[str, deque[Key]] = OrderedDict()
        self._count = asyncio.Semaphore(0)
        self._waiting: set[Key] = set()
        self._active: set[Key] = set()
        self._again: set[Key] = set()
        self._delayed: list[_Delayed] = []
        self._due: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}

    def add(self, key: Key) -> None:
        """Have a key looked at; while it is being worked on, once more afterwards."""
        if key in self._active:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.setdefault(key.namespace, deque()).append(key)
            self._count.release()

    def add_after(self, key: Key, seconds: float) -> None:
        """Have a key looked at when some time has passed, or before: then it is asked for again."""
        due = asyncio.get_running_loop().time() + seconds
        if due >= self._due.get(key, math.inf):
            return
        self._due[key] = due
        heapq.heappush(self._delayed, _Delayed(due, key))
        if len(self._delayed) > 2 * len(self._due) + SPARE_DELAYS:
            self._delayed = [_Delayed(at, each) for each, at in self._due.items()]
            heapq.heapify(self._delayed)

    def release_due(self) -> float | None:
        """Add what is due; return the seconds until the next is."""
        now = asyncio.get_running_loop().time()
        while self._delayed and self._delayed[0].due <= now:
            first = heapq.heappop(self._delayed)
            if self._due.get(first.key) == first.due:  # else an earlier time was asked for since
                del self._due[first.key]
                self.add(first.key)
        return self._delayed[0].due - now if self._delayed else None

    async def get(self) -> Key:
        """Return the next key; no other worker gets it until `done`."""
        await self._count.acquire()
        namespace, keys = next(iter(self._ready.items()))
        key = keys.popleft()
        if keys:
            self._ready.move_to_end(namespace)
        else:
            del self._ready[namespace]
        self._waiting.discard(key)
        self._active.add(key)
        return key

    def done(self, key: Key, *, succeeded: bool) -> None:
        """Give a key back; after a failure it comes again, later each time, with jitter."""
        self._active.discard(key)
        if succeeded:
            self._failures.pop(key, None)
        else:
            count = self._failures[key] = self._failures.get(key, 0) + 1
            delay = min(FIRST_DELAY_SECONDS * 2**count, LONGEST_DELAY_SECONDS)
            self.add_after(key, delay * random.uniform(0.5, 1.5))
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    @property
    def length(self) -> int:
        """How many keys wait, those not due yet left out."""
        return len(self._waiting)

    def is_idle(self, *, within: float) -> bool:
        """Tell whether nothing is to be looked at now or within some seconds."""
        soon = asyncio.get_running_loop().time() + within
        is_due = any(due <= soon for due in self._due.values())
        return not (self._waiting or self._active or self._again or is_due)


async def reconcile(
    key: Key,
    backend: Backend,
    decisions: Mapping[str, Callable[[Any, Observed, datetime], Plan]],
    clock: Callable[[], datetime] = utc_now,
) -> float | None:
    """Bring one object one decision on; return the seconds after which to look again."""
    seen = await backend.observe(key)
    if seen is None:
        return None
    status = seen[0].status
    attempt = status.attempts[-1].number if status.attempts else None
    note(run=getattr(status, "run", None), attempt=attempt)
    plan = decisions[key.kind](*seen, clock())
    await backend.execute(key, plan)
    return plan.requeue_after


async def work(
    queue: WorkQueue,
    backend: Backend,
    decisions: Mapping[str, Callable[[Any, Observed, datetime], Plan]],
    measure: Callable[[Key, str, float], None] = lambda *_: None,
) -> None:
    """Reconcile keys until cancelled; a key that fails delays no other."""
    while True:
        key = await queue.get()
        started = time.monotonic()
        with about(key):
            outcome = await _look(queue, key, backend, decisions)
        queue.done(key, succeeded=outcome == DONE)
        measure(key, outcome, time.monotonic() - started)


async def _look(
    queue: WorkQueue,
    key: Key,
    backend: Backend,
    decisions: Mapping[str, Callable[[Any, Observed, datetime], Plan]],
) -> str:
    """Reconcile a key once; return how that went."""
    try:
        after = await reconcile(key, backend, decisions)
    except Conflict as conflict:
        log.info("Reconcile of %s: %s; looking again", "/".join(key), conflict)
        return "conflict"
    except Unavailable as error:
        log.warning("Reconcile of %s: %s; trying again", "/".join(key), error)
        return "failed"
    except Exception:  # the one place where a failed reconcile is decided: it is tried again
        log.exception("Reconcile of %s failed; trying again", "/".join(key))
        return "failed"
    if after is not None:
        queue.add_after(key, after)
    return DONE
