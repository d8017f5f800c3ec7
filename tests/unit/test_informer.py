"""Copies of a cluster: lists, watches, late answers, what vanished unseen; the queue; the election."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from finetune_operator.cluster import lease as leases
from finetune_operator.cluster.cache import Cache
from finetune_operator.cluster.client import ApiError, Changed
from finetune_operator.cluster.informer import Informer
from finetune_operator.cluster.lease import Election, LeaseLost
from finetune_operator.cluster.records import Custom, decode_custom
from finetune_operator.loop import WorkQueue
from finetune_operator.plan import Key
from finetune_operator.settings import Lease


def an_object(name: str, version: int, uid: str = "u1", **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "a", "uid": uid, "resourceVersion": str(version)},
        "spec": spec,
    }


class Server:
    """Lists and watches by script."""

    def __init__(self) -> None:
        self.objects: list[dict[str, Any]] = []
        self.version = 0
        self.lines: list[bytes] = []
        self.failures = 0

    def tells(self, type_: str, body: dict[str, Any]) -> None:
        self.lines.append(orjson.dumps({"type": type_, "object": body}))

    async def pages(self, path: str, *, selector: str = "") -> AsyncIterator[bytes]:
        if self.failures:
            self.failures -= 1
            raise ApiError(503, "later")
        for first in range(0, max(len(self.objects), 1), 2):
            items = self.objects[first : first + 2]
            yield orjson.dumps({"metadata": {"resourceVersion": str(self.version)}, "items": items})

    async def watch(self, path: str, *, version: str, selector: str = "") -> AsyncIterator[bytes]:
        lines, self.lines = self.lines, []
        for line in lines:
            yield line


class Copy:
    """An informer, and what it told."""

    def __init__(self) -> None:
        self.server = Server()
        self.told: list[tuple[int | None, int | None]] = []
        self.informer: Informer[Custom] = Informer(
            self.server,  # type: ignore[arg-type]
            "/things",
            decode_custom,
            lambda old, new: self.told.append(
                (old.metadata.version if old else None, new.metadata.version if new else None)
            ),
        )

    def lists(self, version: int, *objects: dict[str, Any]) -> None:
        self.server.objects, self.server.version = list(objects), version
        asyncio.run(self.informer.relist())

    def watches(self) -> str:
        return asyncio.run(self.informer._watch("0"))

    def learns(self, body: dict[str, Any]) -> None:
        self.informer.learn(orjson.dumps(body))

    @property
    def versions(self) -> dict[str, int]:
        return {name: r.metadata.version for (_, name), r in self.informer.objects.items()}


def test_a_list_tells_what_came_changed_and_vanished() -> None:
    copy = Copy()
    copy.lists(9, an_object("x", 1), an_object("y", 2, "u2"), an_object("z", 3, "u3"))
    copy.told.clear()
    copy.lists(12, an_object("x", 1), an_object("y", 11, "u2"))
    assert copy.told == [(2, 11), (3, None)]
    assert copy.versions == {"x": 1, "y": 11}


def test_own_writes_after_a_list_began_do_not_vanish() -> None:
    copy = Copy()
    copy.learns(an_object("new", 20))
    copy.lists(15)
    assert copy.versions == {"new": 20}


def test_late_answers_bring_nothing_back() -> None:
    copy = Copy()
    copy.learns(an_object("x", 10))
    copy.server.tells("DELETED", an_object("x", 30))
    copy.watches()
    copy.learns(an_object("x", 20))
    assert copy.versions == {}


def test_a_late_answer_brings_nothing_back_that_vanished_unseen() -> None:
    copy = Copy()
    copy.learns(an_object("x", 10))
    copy.lists(40)  # it was written at 20, deleted at 30, and no watch told so
    copy.learns(an_object("x", 20))
    assert copy.versions == {}


def test_a_late_answer_does_not_replace_the_next_object_of_the_name() -> None:
    copy = Copy()
    copy.learns(an_object("x", 10))
    copy.lists(40, an_object("x", 35, "u2"))
    copy.learns(an_object("x", 20))
    assert copy.informer.objects["a", "x"].metadata.uid == "u2"


def test_stale_events_change_nothing() -> None:
    copy = Copy()
    copy.lists(9, an_object("x", 9, "u2"))
    for type_, version, uid in (("MODIFIED", 5, "u2"), ("DELETED", 4, "u1"), ("ADDED", 3, "u1")):
        copy.server.tells(type_, an_object("x", version, uid))
    copy.told.clear()
    assert copy.watches() == "3"
    assert copy.told == []


def test_what_cannot_be_read_ends_no_copy_of_others() -> None:
    bad = {**an_object("bad", 2, "u2"), "metadata": {"name": "bad", "namespace": "a", "labels": 3,
                                                     "resourceVersion": "2"}}  # fmt: skip
    copy = Copy()
    copy.lists(9, bad, an_object("x", 1))
    copy.server.tells("MODIFIED", bad)
    copy.server.tells("BOOKMARK", {"metadata": {"resourceVersion": "8"}})
    assert copy.watches() == "8"
    assert copy.versions == {"x": 1}


def test_an_error_in_a_watch_is_raised() -> None:
    copy = Copy()
    copy.server.tells("ERROR", {"code": 410, "message": "too old"})
    with pytest.raises(ApiError, match="410"):
        copy.watches()


def test_a_list_that_fails_is_tried_again() -> None:
    copy = Copy()
    copy.server.failures = 1
    copy.lists(9, an_object("x", 1))
    assert copy.versions == {"x": 1}


def test_a_spec_of_another_release_ends_no_copies() -> None:
    woken: list[Key] = []
    cache = Cache(Server(), [], woken.append)  # type: ignore[arg-type]
    cache.learn_custom("FineTuneJob", orjson.dumps(an_object("x", 1, datasets="rows")))
    assert woken == [Key("FineTuneJob", "a", "x")]


def test_changes_of_what_a_job_names_wake_it() -> None:
    woken: list[Key] = []
    cache = Cache(Server(), [], woken.append)  # type: ignore[arg-type]
    job = an_object("x", 1, datasets=[{"name": "rows"}], evalDatasets=[{"name": "test"}])
    cache.learn_custom("FineTuneJob", orjson.dumps(job))
    woken.clear()
    cache.learn_custom("DatasetRegistration", orjson.dumps(an_object("test", 2, "u2")))
    assert Key("FineTuneJob", "a", "x") in woken
    cache.learn_custom("FineTuneJob", orjson.dumps(an_object("x", 3, datasets=[])))
    assert cache._watchers == {}


KEY = Key("FineTuneJob", "a", "x")


def test_a_key_waits_for_one_time_only() -> None:
    """Else each look at a job with a deadline or a time to live leaves one entry more, for ever."""

    async def waits() -> tuple[int, int]:
        queue = WorkQueue()
        for number in range(1000):
            queue.add_after(KEY, 3600.0 + number)
        once = len(queue._delayed)
        for _ in range(1000):
            queue.add_after(KEY, 3600.0)
            queue.add_after(KEY, 0.0)
            queue.release_due()
        return once, len(queue._delayed)

    once, often = asyncio.run(waits())
    assert once == 1
    assert often < 100


def test_the_earlier_time_counts() -> None:
    async def waits() -> bool:
        queue = WorkQueue()
        queue.add_after(KEY, 60.0)
        queue.add_after(KEY, 0.0)
        queue.release_due()
        found = await asyncio.wait_for(queue.get(), 1)
        queue.done(found, succeeded=True)
        return queue.is_idle(within=90.0)

    assert asyncio.run(waits())


def test_namespaces_take_turns() -> None:
    async def order() -> list[str]:
        queue = WorkQueue()
        for number in range(100):
            queue.add(Key("FineTuneJob", "loud", str(number)))
        queue.add(Key("FineTuneJob", "quiet", "one"))
        found = [await queue.get() for _ in range(101)]
        assert len(set(found)) == 101
        return [key.namespace for key in found]

    namespaces = asyncio.run(order())
    assert namespaces.index("quiet") <= 1
    assert namespaces.count("loud") == 100


class Leases:
    """One Lease, on an API server that refuses stale writes."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.fails = False

    async def get(self, path: str) -> bytes:
        if self.fails:
            raise ApiError(0, "away")
        if self.lease is None:
            raise ApiError(404, "none")
        return orjson.dumps(self.lease)

    async def call(self, method: str, path: str, *, body: dict[str, Any]) -> bytes:
        if self.fails:
            raise ApiError(0, "away")
        version = int(self.lease["metadata"]["resourceVersion"]) if self.lease else 0
        if method == "PUT" and body["metadata"]["resourceVersion"] != str(version):
            raise Changed(409, "stale")
        self.lease = {**body, "metadata": {**body["metadata"], "resourceVersion": str(version + 1)}}
        return b""


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(leases, "time", found)
    return found


def test_a_lease_is_taken_over_when_its_holder_was_silent_by_our_clock(clock: Clock) -> None:
    server = Leases()
    first, second = (Election(server, Lease(), name) for name in "ab")  # type: ignore[arg-type]
    assert asyncio.run(first._try())
    # However old or new its times look: they are of another computer's clock.
    assert server.lease is not None
    server.lease["spec"]["renewTime"] = "1999-01-01T00:00:00.000000Z"
    for _ in range(3):
        assert not asyncio.run(second._try())
        clock.now += 5.0
    assert not first.leads, "a holder that could not renew writes no longer"
    clock.now += 0.1
    assert asyncio.run(second._try())
    assert second.leads
    with pytest.raises(LeaseLost):
        asyncio.run(first._try())


def test_a_lease_that_cannot_be_renewed_is_given_up_in_time(clock: Clock) -> None:
    server = Leases()
    first = Election(server, Lease(), "a")  # type: ignore[arg-type]
    assert asyncio.run(first._try())
    server.fails = True
    clock.now += 9.0
    assert not asyncio.run(first._try())
    assert first.leads
    clock.now += 1.1
    assert not first.leads


def test_a_released_lease_is_free(clock: Clock) -> None:
    server = Leases()
    first, second = (Election(server, Lease(), name) for name in "ab")  # type: ignore[arg-type]
    assert asyncio.run(first._try())
    asyncio.run(first.release())
    assert asyncio.run(second._try())
