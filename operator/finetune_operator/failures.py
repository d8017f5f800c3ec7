"""From the end of a step run to what it means and what follows."""

from dataclasses import dataclass
from enum import StrEnum

from finetune_api.contract import FAILURE_CLASSES, ErrorReport, ExitCode, Termination
from finetune_api.status import Attempt, Failure, FailureClass
from finetune_operator.plan import ObservedRun

RESULTS = {"validate": "validated", "prepare": "prepared", "train": "trained"}
"""Field of the last word that holds a step's result; of every other step `exported`."""


class Next(StrEnum):
    """What follows a failed attempt."""

    RETRY = "Retry"
    RETRY_SMALLER = "RetrySmaller"
    GIVE_UP = "GiveUp"


@dataclass(frozen=True)
class Judgement:
    """A failed attempt, judged."""

    failure: Failure
    next: Next
    counts: bool
    """Whether it uses up one of `maxRestarts`."""


def termination_of(run: ObservedRun) -> Termination:
    """Return a run's last word; a run that vanished without one was lost from outside."""
    end = run.termination
    if end is not None and end.snapshot is None:
        end = end.model_copy(
            update={"snapshot": run.snapshot}
        )  # its last report, where that is known
    if end is not None and (end.exit_code != 0 or _result(run.step, end) is not None):
        return end
    if end is not None:
        silent = ErrorReport(message=f"the image ended {run.step} well, but without a result of it")
        return end.model_copy(update={"exit_code": ExitCode.BUG, "error": silent})
    lost = ErrorReport(message="the process ended without a word; it was killed from outside")
    return Termination(exit_code=ExitCode.INFRASTRUCTURE, error=lost, snapshot=run.snapshot)


def _result(step: str, end: Termination) -> object:
    """Return what a step leaves when it ends well."""
    return getattr(end, RESULTS.get(step, "exported"))


def judge(
    run: ObservedRun, attempt: Attempt, *, restarts: int, max_restarts: int, may_shrink: bool
) -> Judgement:
    """Decide what a failed attempt means.

    `restarts` were counted before it; `may_shrink`: the user left the micro-batch to us.
    """
    end = termination_of(run)
    code = ExitCode(end.exit_code) if end.exit_code in FAILURE_CLASSES else ExitCode.BUG
    failure_class = FAILURE_CLASSES[code]
    error = end.error
    failure = Failure(
        failure_class=failure_class,
        message=error.message if error else f"exit code {end.exit_code}",
        step=attempt.step,
        rank=error.rank if error else None,
        exit_code=end.exit_code,
        log_tail=error.log_tail or None if error else None,
    )
    if end.stop_was_requested:
        return Judgement(failure, Next.RETRY, counts=False)
    counts = not (code is ExitCode.EVICTED and made_progress(end))
    if failure_class in (FailureClass.USER_ERROR, FailureClass.DATA_ERROR):
        return Judgement(failure, Next.GIVE_UP, counts=counts)
    if failure_class is FailureClass.OUT_OF_MEMORY:
        shrinks = may_shrink and attempt.micro_batch_divisor == 1
        return Judgement(failure, Next.RETRY_SMALLER if shrinks else Next.GIVE_UP, counts=counts)
    allowed = 1 if failure_class is FailureClass.INTERNAL else max_restarts
    spent = restarts + counts > min(allowed, max_restarts)
    return Judgement(failure, Next.GIVE_UP if spent else Next.RETRY, counts=counts)


def made_progress(end: Termination) -> bool:
    """Tell whether an attempt saved a newer checkpoint than the one it started from."""
    snapshot = end.snapshot
    if snapshot is None or snapshot.checkpoints.latest is None:
        return False
    return snapshot.checkpoints.latest.step > (snapshot.progress.resumed_from_step or 0)
