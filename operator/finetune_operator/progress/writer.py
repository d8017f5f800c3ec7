"""From reports to status: written by any replica, never backwards, never often.

A report is complete, so one that is not written costs nothing: the next one makes up for it.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson

from finetune_api.objects import dump
from finetune_operator.cluster.cache import Cache
from finetune_operator.cluster.client import ApiError, ApiServer, Changed
from finetune_operator.cluster.records import Custom
from finetune_operator.cluster.status import write_status
from finetune_operator.conditions import seconds_of
from finetune_operator.kinds.jobstatus import step_message
from finetune_operator.plan import Key
from finetune_operator.progress import wire
from finetune_operator.progress.budget import Budget
from finetune_operator.steps import train

MANAGER = "finetune-progress"
LEAST_SECONDS = 10.0
"""Between two writes of a job's progress; an attempt's first and last are written at once."""
WRITES_A_SECOND, WRITES_AT_ONCE = 25.0, 50.0
TRIES = 4
CATCH_UP_SECONDS = 0.1
KEPT = 20_000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reporter:
    """The attempt that a pod belongs to."""

    key: Key
    uid: str
    run: int
    attempt: int


class NotRunning(Exception):
    """A report is of an attempt that is not, or no longer, the job's running one."""


class _Attempt(msgspec.Struct, rename="camel"):
    step: str = ""
    number: int = 0
    end_time: str | None = None


class _Progress(msgspec.Struct, rename="camel"):
    attempt: int = 0
    sequence: int = 0
    step: int = 0
    total_steps: int = 0
    last_report_time: str | None = None


class _Status(msgspec.Struct, rename="camel"):
    run: int = 0
    phase: str = ""
    attempts: list[_Attempt] = []
    progress: _Progress = msgspec.field(default_factory=_Progress)


_status = msgspec.json.Decoder(_Status).decode


class ProgressWriter:
    """Writes what is due."""

    def __init__(self, api: ApiServer, cache: Cache) -> None:
        """Write by calls that need no lead: the version of what was read guards them."""
        self._api, self._cache = api, cache
        self._budget = Budget(WRITES_A_SECOND, WRITES_AT_ONCE)
        self._writing: dict[Key, asyncio.Task[None]] = {}
        self._written: OrderedDict[Key, float] = OrderedDict()
        self.written = self.shed = 0

    def offer(self, reporter: Reporter, report: wire.Report) -> None:
        """Take a report; it is written if it is news and due.

        Raises:
            NotRunning: of another attempt than the job's running one.
        """
        record = self._cache.custom(reporter.key)
        status = _running(record, reporter)
        if not self._is_due(status, reporter, report) or reporter.key in self._writing:
            return
        if not self._budget.take():
            self.shed += 1
            return
        task = asyncio.create_task(self._write(reporter, report))
        self._writing[reporter.key] = task
        task.add_done_callback(lambda _: self._writing.pop(reporter.key, None))

    def _is_due(self, status: _Status, reporter: Reporter, report: wire.Report) -> bool:
        before = status.progress
        if before.attempt != reporter.attempt:
            return True
        if wire.number_of(report) <= before.sequence:
            return False
        if wire.is_last(report) and not 0 < before.total_steps <= before.step:
            return True
        # By the trainer's clock, since another replica may have written the last one; and by ours,
        # since a pod may say what it likes.
        last = seconds_of(before.last_report_time) if before.last_report_time else 0.0
        passed = time.monotonic() - self._written.get(reporter.key, -LEAST_SECONDS)
        return wire.time_of(report) - last > LEAST_SECONDS and passed >= LEAST_SECONDS

    async def _write(self, reporter: Reporter, report: wire.Report) -> None:
        for _ in range(TRIES):
            try:
                record = self._cache.custom(reporter.key)
                status = _running(record, reporter)
                before = status.progress
                is_news = wire.number_of(report) > before.sequence
                if before.attempt == reporter.attempt and not is_news:
                    return
                assert record is not None
                await self._write_onto(record, reporter, report)
            except Changed:
                await asyncio.sleep(CATCH_UP_SECONDS)
            except NotRunning:
                return
            except ApiError as error:
                log.info("Progress of %s was not written: %s", "/".join(reporter.key), error)
                return
            else:
                return

    async def _write_onto(self, record: Custom, reporter: Reporter, report: wire.Report) -> None:
        old: dict[str, Any] = orjson.loads(record.status)
        snapshot = wire.snapshot_of(report, old, attempt=reporter.attempt)
        # What a beginning attempt does not know yet stays as the one before left it.
        told = {name: value for name, value in dump(snapshot).items() if value}
        told["checkpoints"] = {**(old.get("checkpoints") or {}), **told.get("checkpoints", {})}
        if old.get("reason") == "Training":
            told["message"] = step_message(snapshot.progress)
        wrote = await write_status(
            self._api, self._cache, reporter.key, record, {**old, **told}, manager=MANAGER
        )
        if wrote:
            self.written += 1
            self._written[reporter.key] = time.monotonic()
            self._written.move_to_end(reporter.key)
            while len(self._written) > KEPT:
                self._written.popitem(last=False)


def _running(record: Custom | None, reporter: Reporter) -> _Status:
    """Return the status of the job that a reporter belongs to.

    Raises:
        NotRunning: that job does not run this attempt.
    """
    if record is None or record.metadata.uid != reporter.uid:
        raise NotRunning("this job is gone")
    status = _status(record.status)
    if status.run != reporter.run:
        raise NotRunning(f"the job is at run {status.run}")
    current = next((a for a in reversed(status.attempts) if a.step == train.STEP), None)
    if current is None or current.number != reporter.attempt or current.end_time is not None:
        raise NotRunning(f"attempt {reporter.attempt} is not, or no longer, the running one")
    return status
