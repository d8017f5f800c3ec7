"""One step, attempt by attempt: record, start, follow, judge. The same for every step."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from finetune_api.contract import Snapshot, Termination
from finetune_api.finetunejob import FineTuneJobStatus
from finetune_api.meta import Metadata
from finetune_api.status import Attempt, Checkpoints, Failure, Metrics, Status
from finetune_operator.conditions import seconds_of, timestamp
from finetune_operator.failures import Judgement, Next, judge, made_progress, termination_of
from finetune_operator.plan import Event, Observed, ObservedRun, StepRun
from finetune_operator.steps.naming import run_name

KEPT_ATTEMPTS = 10


@dataclass(frozen=True)
class Policy:
    """How often a step is tried."""

    max_restarts: int = 3
    may_shrink: bool = False


@dataclass(frozen=True)
class Advance:
    """Where a step stands, and what that asks for."""

    attempts: list[Attempt]
    restarts: int
    attempt: Attempt | None = None
    runs: tuple[StepRun, ...] = ()
    running: ObservedRun | None = None
    result: Termination | None = None
    ended: Termination | None = None
    """The last word of the attempt that was looked at, whatever it was."""
    failure: Failure | None = None
    """Set when the step is given up."""
    last_failure: Failure | None = None
    """Set when an attempt failed and another follows."""
    events: tuple[Event, ...] = ()
    ran_seconds: int = 0
    """Running time of an attempt that just ended."""
    lost_seconds: int = 0
    """Those of them whose work is done again."""


def advance(
    step: str,
    *,
    status: Status,
    metadata: Metadata,
    run: int,
    observed: Observed,
    policy: Policy,
    make: Callable[[Attempt, str], StepRun],
    now: datetime,
) -> Advance:
    """Move a step one decision on.

    A new attempt's number goes to status before its run is made: whoever executes the plan writes the
    status first, and makes nothing where that is refused. So neither a crash in between nor an old copy
    can lose an attempt or make two.
    """

    def begin(status: Status, number: int, divisor: int) -> Advance:
        attempt = Attempt(
            step=step, number=number, start_time=timestamp(now), micro_batch_divisor=divisor
        )
        name = run_name(metadata, run=run, step=step, attempt=number)
        return Advance(
            attempts=_newest([*status.attempts, attempt]),
            restarts=status.restarts,
            attempt=attempt,
            runs=(make(attempt, name),),
        )

    mine = [attempt for attempt in status.attempts if attempt.step == step]
    if not mine:
        return begin(status, 1, 1)
    attempt = mine[-1]
    name = run_name(metadata, run=run, step=step, attempt=attempt.number)
    seen = observed.runs.get(name)
    base = Advance(attempts=list(status.attempts), restarts=status.restarts, attempt=attempt)
    if seen is None:
        if attempt.end_time is None:
            return _with(base, runs=(make(attempt, name),), running=_unmade(name, observed))
        # The run was removed after its end; whoever still needs its result must have it made again.
        return begin(status, attempt.number + 1, attempt.micro_batch_divisor)
    seen = _with_report(seen, status, attempt)
    if seen.is_running:
        return _with(base, running=seen)
    end = termination_of(seen)
    if end.exit_code == 0:
        return _succeeded(base, attempt, seen, end)
    if attempt.end_time is not None and attempt.exit_code == 0:
        # It ended well and said so; its pod, and its word with it, was removed since.
        return begin(status, attempt.number + 1, attempt.micro_batch_divisor)
    return _failed(base, attempt, seen, status, policy, begin)


def _with_report(seen: ObservedRun, status: Status, attempt: Attempt) -> ObservedRun:
    """Return a run with its newest report: on a cluster it stands in the status already."""
    if seen.snapshot is not None or not isinstance(status, FineTuneJobStatus):
        return seen
    if attempt.step != "train" or not (there := status.progress) or there.attempt != attempt.number:
        return seen
    report = Snapshot(
        progress=there,
        metrics=status.metrics or Metrics(),
        loss_history=status.loss_history,
        eval_history=status.eval_history,
        checkpoints=status.checkpoints or Checkpoints(),
    )
    return replace(seen, snapshot=report)


def _unmade(name: str, observed: Observed) -> ObservedRun | None:
    """Return a run that could not be made, as one that waits; None: nothing speaks against it."""
    why = observed.refusals.get(name)
    if why is None:
        return None
    return ObservedRun(name, run=0, step="", is_running=True, started_at=None, waiting=why)


def _with(base: Advance, **changes: object) -> Advance:
    return Advance(**{**base.__dict__, **changes})


def _newest(attempts: list[Attempt]) -> list[Attempt]:
    """Return as many attempts as are kept; the last of a step stays, or it would seem never made."""
    last = {attempt.step: attempt for attempt in attempts}
    older = [attempt for attempt in attempts if attempt is not last[attempt.step]]
    dropped = older[: max(len(attempts) - KEPT_ATTEMPTS, 0)]
    return [attempt for attempt in attempts if not any(attempt is one for one in dropped)]


def _succeeded(base: Advance, attempt: Attempt, seen: ObservedRun, end: Termination) -> Advance:
    if attempt.end_time is not None:
        return _with(base, result=end)
    attempts, seconds = _ended(base.attempts, attempt, seen, end, reason="Completed")
    return _with(base, attempts=attempts, result=end, ran_seconds=seconds)


def _failed(
    base: Advance,
    attempt: Attempt,
    seen: ObservedRun,
    status: Status,
    policy: Policy,
    begin: Callable[[Status, int, int], Advance],
) -> Advance:
    verdict = judge(
        seen,
        attempt,
        restarts=status.restarts,
        max_restarts=policy.max_restarts,
        may_shrink=policy.may_shrink,
    )
    end = termination_of(seen)
    reason = "Stopped" if end.stop_was_requested else str(verdict.failure.failure_class)
    attempts, seconds = base.attempts, 0
    if attempt.end_time is None:
        attempts, seconds = _ended(attempts, attempt, seen, end, reason=reason)
    lost = _lost_seconds(end, seen, seconds)
    restarts = status.restarts + verdict.counts
    if verdict.next is Next.GIVE_UP:
        return _with(
            base,
            attempts=attempts,
            restarts=restarts,
            failure=verdict.failure,
            ran_seconds=seconds,
            lost_seconds=lost,
            ended=end,
        )
    divisor = 2 if verdict.next is Next.RETRY_SMALLER else attempt.micro_batch_divisor
    ended = status.model_copy(update={"attempts": attempts, "restarts": restarts})
    return _with(
        begin(ended, attempt.number + 1, divisor),
        last_failure=None if end.stop_was_requested else verdict.failure,
        events=_events(verdict, attempt, end),
        ran_seconds=seconds,
        lost_seconds=lost,
    )


def _ended(
    attempts: list[Attempt], attempt: Attempt, seen: ObservedRun, end: Termination, *, reason: str
) -> tuple[list[Attempt], int]:
    """Return the attempts with one closed, and how long it ran."""
    snapshot = end.snapshot
    began = seen.started_at if seen.started_at is not None else seen.ended_at or 0.0
    ended_at = seen.ended_at if seen.ended_at is not None else began
    closed = attempt.model_copy(
        update={
            "end_time": timestamp(datetime.fromtimestamp(ended_at).astimezone()),
            "reason": reason,
            "exit_code": end.exit_code,
            "resumed_from_step": snapshot.progress.resumed_from_step if snapshot else None,
            "steps_done": snapshot.progress.step if snapshot else None,
        }
    )
    return [closed if a is attempt else a for a in attempts], max(round(ended_at - began), 0)


def _lost_seconds(end: Termination, seen: ObservedRun, ran: int) -> int:
    """Return how much of an attempt's time is behind its last checkpoint; all of it without one."""
    latest = end.snapshot.checkpoints.latest if end.snapshot else None
    if latest is None or latest.time is None or not made_progress(end) or seen.ended_at is None:
        return ran
    return min(max(round(seen.ended_at - seconds_of(latest.time)), 0), ran)


def _events(verdict: Judgement, attempt: Attempt, end: Termination) -> tuple[Event, ...]:
    if end.stop_was_requested:
        return ()
    kept = "; the last checkpoint is kept" if made_progress(end) else ""
    message = (
        f"{attempt.step} attempt {attempt.number}: {verdict.failure.message}{kept}; trying again"
    )
    return (Event(reason="AttemptFailed", message=message, is_warning=True),)
