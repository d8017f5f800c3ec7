"""What stands between a FineTuneJob and its first step: contradictions, suspension, data not ready."""

from datetime import datetime

from finetune_api.contradictions import contradictions
from finetune_api.finetunejob import FineTuneJob, FineTuneJobStatus
from finetune_api.status import Failure, FailureClass
from finetune_operator.conditions import is_true, timestamp
from finetune_operator.kinds import jobstatus
from finetune_operator.kinds.report import failed, predecessor_message
from finetune_operator.plan import Observed, Plan
from finetune_operator.steps import prepare
from finetune_operator.steps.naming import run_name
from finetune_operator.steps.placement import missing_profile, refused_variables

INLINE_BYTES = 900 << 10
"""What inline rows may come to in a job file: a ConfigMap holds 1 MiB, its pod and spec included."""
PURPOSES = {"sft": ("conversation",)}


def refuse(
    job: FineTuneJob, status: FineTuneJobStatus, observed: Observed, now: datetime
) -> Plan | None:
    """Refuse what cannot work whatever the data, before anything is started."""
    if status.attempts:
        return None
    problems = [
        *contradictions(job.spec, here=observed.machine),
        *refused_variables(job.spec.workers, observed),
    ]
    if not problems:
        return None
    return Plan(status=_ended_by(job, status, "resolve", "; ".join(problems), now))


def _ended_by(
    job: FineTuneJob, status: FineTuneJobStatus, step: str, message: str, now: datetime
) -> FineTuneJobStatus:
    failure = Failure(failure_class=FailureClass.USER_ERROR, message=message[:4096], step=step)
    return failed(status, failure, job.metadata, now)


def wait(
    job: FineTuneJob, status: FineTuneJobStatus, observed: Observed, now: datetime
) -> Plan | None:
    """Suspend, or wait for data that is not ready."""
    running = tuple(run.name for run in observed.runs.values() if run.is_running)
    if job.spec.suspend:
        # While it is still there: with the run goes what it tells of its running time.
        closed = close_stopped(job, status, observed, now, reason="Suspended")
        if running:
            return Plan(status=jobstatus.suspending(job, closed, now), stops=running)
        return Plan(status=jobstatus.suspended(job, closed, now))
    if observed.predecessor_pods:
        words = predecessor_message(observed)
        told_ = jobstatus.waiting(job, status, "PredecessorEnding", words, now)
        return Plan(status=told_, requeue_after=5.0)
    if (missing := missing_profile(job.spec.workers, observed)) is not None:
        return Plan(status=jobstatus.waiting(job, status, "ProfileNotFound", missing, now))
    if status.attempts and status.attempts[-1].step != prepare.STEP:
        return None  # the data was read when it was prepared; what became of it since is no matter
    return _wait_for_data(job, status, observed, now, running)


def _wait_for_data(
    job: FineTuneJob,
    status: FineTuneJobStatus,
    observed: Observed,
    now: datetime,
    running: tuple[str, ...],
) -> Plan | None:
    """Wait for registrations that are not ready; refuse those that cannot be trained on."""
    for reference in [*job.spec.datasets, *(job.spec.eval_datasets or [])]:
        found = observed.datasets.get(reference.name)
        if found is None:
            message = (
                f"DatasetRegistration '{reference.name}' does not exist in namespace"
                f" '{job.metadata.namespace}'; create it, or correct `spec.datasets`"
            )
            return Plan(
                status=jobstatus.waiting(job, status, "DatasetNotFound", message, now),
                stops=running,
            )
        if (
            not is_true(found.status.conditions, "Ready")
            or found.status.observed_generation != found.metadata.generation
        ):
            state = found.status.message or "not validated yet"
            message = f"DatasetRegistration '{reference.name}' is not ready: {state}"
            return Plan(
                status=jobstatus.waiting(job, status, "DatasetNotReady", message, now),
                stops=running,
            )
        if found.status.purpose not in PURPOSES[job.spec.stage]:
            needed = " or ".join(PURPOSES[job.spec.stage])
            message = (
                f"DatasetRegistration '{reference.name}' holds {found.status.purpose} rows; stage"
                f" {job.spec.stage} needs {needed}"
            )
            return Plan(status=_ended_by(job, status, "resolve", message, now))
    if (refusal := _too_many_rows(job, observed)) is not None:
        return Plan(status=_ended_by(job, status, "resolve", refusal, now))
    return None


def _too_many_rows(job: FineTuneJob, observed: Observed) -> str | None:
    """Return a refusal of inline rows that the ConfigMap of the step cannot hold, or None."""
    if observed.machine is not None:
        return None  # files of this computer have no such bound
    inputs = [one for many in prepare.inputs(job, observed).values() for one in many]
    inline = [one for one in inputs if one.spec.source.inline is not None]
    size = sum(len(one.model_dump_json(by_alias=True).encode()) for one in inline)
    if size <= INLINE_BYTES:
        return None
    return (
        f"`spec.datasets` and `spec.evalDatasets` name {len(inline)} DatasetRegistrations with inline"
        f" rows of together {size >> 10} KiB; a job holds at most {INLINE_BYTES >> 10} KiB; put rows"
        " into a file and name it in their `spec.source.uri`"
    )


def close_stopped(
    job: FineTuneJob,
    status: FineTuneJobStatus,
    observed: Observed,
    now: datetime,
    *,
    reason: str,
) -> FineTuneJobStatus:
    """Record the end of the attempt that a suspension or the deadline stopped."""
    if not status.attempts or status.attempts[-1].end_time is not None:
        return status
    attempt = status.attempts[-1]
    name = run_name(job.metadata, run=status.run, step=attempt.step, attempt=attempt.number)
    seen = observed.runs.get(name)
    ended = (seen.ended_at if seen else None) or now.timestamp()
    closed = attempt.model_copy(
        update={
            "end_time": timestamp(datetime.fromtimestamp(ended).astimezone()),
            "reason": reason,
        }
    )
    began = seen.started_at if seen else None
    spent = max(round(ended - began), 0) if began is not None else 0
    return status.model_copy(
        update={
            "attempts": [*status.attempts[:-1], closed],
            "running_seconds": status.running_seconds + spent,
        }
    )
