"""Conditions as Kubernetes has them: one of a type, its time changes with its status only."""

from datetime import UTC, datetime

from finetune_api.status import Condition


def timestamp(now: datetime) -> str:
    """Return a time as Kubernetes writes it."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_of(text: str) -> float:
    """Return the seconds since the epoch of a time that Kubernetes wrote."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()


def is_true(conditions: list[Condition], type_: str) -> bool:
    """Tell whether a condition holds."""
    return any(c.type == type_ and c.status == "True" for c in conditions)


def with_condition(conditions: list[Condition], new: Condition) -> list[Condition]:
    """Return the conditions with one set; its transition time is kept if its status is."""
    old = next((c for c in conditions if c.type == new.type), None)
    if old is not None and old.status == new.status:
        new = new.model_copy(update={"last_transition_time": old.last_transition_time})
    if old is None:
        return [*conditions, new]
    return [new if c.type == new.type else c for c in conditions]
