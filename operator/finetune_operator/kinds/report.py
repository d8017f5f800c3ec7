"""What every kind tells people: phase, reason, message, conditions, events of transitions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from finetune_api.meta import Metadata
from finetune_api.status import Condition, Failure, Status
from finetune_operator.conditions import timestamp, with_condition
from finetune_operator.plan import Event, Observed, ObservedRun

S = TypeVar("S", bound=Status)
LONGEST_MESSAGE = 4096


@dataclass(frozen=True)
class Told:
    """How an object stands, in words."""

    phase: str
    reason: str
    message: str
    conditions: Mapping[str, bool | None] = field(default_factory=dict)
    """Type → holds, does not, or None: not known yet. Reason and message are those above."""


def told(status: S, told_: Told, metadata: Metadata, now: datetime, **changes: object) -> S:
    """Return a status that says how things stand."""
    conditions = list(status.conditions)
    # What is quoted in it may be as long as a message may be.
    message = told_.message[:LONGEST_MESSAGE]
    for type_, holds in told_.conditions.items():
        new = Condition(
            type=type_,
            status="Unknown" if holds is None else "True" if holds else "False",
            reason=told_.reason,
            message=message,
            last_transition_time=timestamp(now),
            observed_generation=metadata.generation,
        )
        conditions = with_condition(conditions, new)
    return status.model_copy(
        update={
            "observed_generation": metadata.generation,
            "phase": told_.phase,
            "reason": told_.reason,
            "message": message,
            "conditions": conditions,
            **changes,
        }
    )


def predecessor_message(observed: Observed) -> str:
    """Return what is waited for when an object of the same name was deleted a moment ago."""
    pods = ", ".join(observed.predecessor_pods[:3])
    return f"pods of a deleted object of this name are still ending: {pods}; it begins after them"


def with_pods(status: S, run: ObservedRun | None, metadata: Metadata, now: datetime) -> S:
    """Return a status that says whether a run's processes have started, and what they wait for.

    None is a run that is just being made.
    """
    if run is not None and run.waiting is not None:
        told_ = Told("Queued", run.waiting.reason, run.waiting.message, {"PodsReady": False})
        return told(status, told_, metadata, now)
    started = run is not None and run.started_at is not None
    reason, message = (
        ("Started", "the processes of the step run")
        if started
        else ("Starting", "the pod is being started")
    )
    words = Told(status.phase, reason, message, {"PodsReady": started})
    kept = {"phase": status.phase, "reason": status.reason, "message": status.message}
    return told(status, words, metadata, now).model_copy(update=kept)


def transition(old: Status, new: Status) -> tuple[Event, ...]:
    """Return the event of a changed phase or reason, if it changed."""
    if (old.phase, old.reason) == (new.phase, new.reason):
        return ()
    return (Event(new.reason, new.message, is_warning=new.phase == "Failed"),)


def failed(status: S, failure: Failure, metadata: Metadata, now: datetime, **changes: object) -> S:
    """Return a status that has ended in failure."""
    ends = {"Failed": True, "Succeeded": False, "Finished": True, "Stalled": True}
    told_ = Told("Failed", str(failure.failure_class), failure.message, ends)
    return told(
        status, told_, metadata, now, failure=failure, completion_time=timestamp(now), **changes
    )


WAITS = {"Finished": False, "Stalled": False}
