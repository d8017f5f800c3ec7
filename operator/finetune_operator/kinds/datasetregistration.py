"""DatasetRegistration: validate once, and again when `refresh` is raised or the spec changes."""

from dataclasses import replace
from datetime import datetime

from finetune_api.contract import Termination
from finetune_api.datasetregistration import DatasetRegistration, DatasetRegistrationStatus
from finetune_operator.conditions import is_true, timestamp
from finetune_operator.kinds.report import WAITS, Told, failed, told, transition, with_pods
from finetune_operator.plan import Observed, Plan
from finetune_operator.steps import validate
from finetune_operator.steps.attempts import Advance, Policy, advance
from finetune_operator.steps.placement import default_placement


def decide(registration: DatasetRegistration, observed: Observed, now: datetime) -> Plan:
    """Return what a registration needs next."""
    metadata, old = registration.metadata, registration.status
    running = tuple(run.name for run in observed.runs.values() if run.is_running)
    if metadata.deletion_timestamp:
        removals = tuple(observed.runs)
        return Plan(
            stops=running, removals=() if running else removals, releases_object=not running
        )
    status = old
    if old.observed_generation != metadata.generation:
        status = DatasetRegistrationStatus(start_time=timestamp(now))
    elif is_true(old.conditions, "Finished"):
        return Plan()
    number = metadata.generation
    step = advance(
        validate.STEP,
        status=status,
        metadata=metadata,
        run=number,
        observed=observed,
        policy=Policy(),
        make=lambda attempt, name: replace(
            validate.step_run(registration, number, attempt, name),
            placement=default_placement(observed),
        ),
        now=now,
    )
    new = _status(status, step, registration, now)
    stale = tuple(name for name in running if step.running is None or name != step.running.name)
    ended = tuple(r.name for r in observed.runs.values() if not r.is_running and r.run != number)
    return Plan(
        status=new,
        runs=step.runs,
        stops=stale,
        removals=ended,
        events=(*step.events, *transition(old, new)),
    )


def _status(
    status: DatasetRegistrationStatus,
    step: Advance,
    registration: DatasetRegistration,
    now: datetime,
) -> DatasetRegistrationStatus:
    metadata = registration.metadata
    status = status.model_copy(update={"attempts": step.attempts, "restarts": step.restarts})
    if step.result is not None:
        return _ready(status, step.result, registration, now)
    if step.failure is None:
        words = Told("Validating", "Validating", "reading every row", {"Ready": None, **WAITS})
        status = told(status, words, metadata, now)
        return with_pods(status, step.running, metadata, now)
    found = _found(step, registration)
    status = failed(status, step.failure, metadata, now, **found)
    words = Told(status.phase, status.reason, status.message, {"Ready": False})
    return told(status, words, metadata, now)


def _found(step: Advance, registration: DatasetRegistration) -> dict[str, object]:
    """Return the invalid rows that a failed validation reported."""
    del registration
    end = step.ended
    if end is None or end.validated is None:
        return {}
    return {"errors": end.validated.errors, "invalid_rows": end.validated.invalid_rows}


def _ready(
    status: DatasetRegistrationStatus,
    result: Termination,
    registration: DatasetRegistration,
    now: datetime,
) -> DatasetRegistrationStatus:
    found = result.validated
    assert found is not None, "a validation that succeeded has a result"
    left_out = f", {found.invalid_rows} invalid rows left out" if found.invalid_rows else ""
    words = Told(
        "Ready",
        "Validated",
        f"{found.rows} {found.format} rows{left_out}",
        {"Ready": True, "Finished": True, "Stalled": False},
    )
    fields = {name: getattr(found, name) for name in type(found).model_fields}
    return told(
        status,
        words,
        registration.metadata,
        now,
        observed_refresh=registration.spec.refresh,
        completion_time=timestamp(now),
        **fields,
    )
