"""FineTuneJob: from the gates through the steps to the end, and what each needs now."""

from dataclasses import replace
from datetime import datetime

from finetune_api.compute import FailurePolicy
from finetune_api.contract import PrepareResult
from finetune_api.finetunejob import FineTuneJob, FineTuneJobStatus
from finetune_api.status import Attempt, Failure, FailureClass, Usage
from finetune_api.storage import Retain
from finetune_api.training import Training
from finetune_operator.conditions import is_true, seconds_of
from finetune_operator.kinds import jobgates, jobstatus
from finetune_operator.kinds.report import failed, transition
from finetune_operator.plan import Observed, Plan, StepRun
from finetune_operator.steps import export, prepare, train
from finetune_operator.steps.attempts import Advance, Policy, advance
from finetune_operator.steps.files import export_output, output_root
from finetune_operator.steps.naming import run_name
from finetune_operator.steps.placement import placement_of


def decide(job: FineTuneJob, observed: Observed, now: datetime) -> Plan:
    """Return what a job needs next."""
    if job.metadata.deletion_timestamp:
        return _delete(job, observed)
    run = job.spec.rerun + 1
    is_current = job.status.run == run and not _was_corrected(job)
    if is_current and is_true(job.status.conditions, "Finished"):
        return _after_end(job, observed, now)
    status = job.status if is_current else jobstatus.new_run(job, run, now)
    old_runs = _running(observed, besides=run)
    if old_runs:
        return Plan(stops=old_runs, requeue_after=1.0)
    plan = jobgates.refuse(job, status, observed, now) or jobgates.wait(job, status, observed, now)
    if plan is None:
        plan = _pipeline(job, status, observed, now)
    return replace(_announced(job, plan), holds_object=_goes_with_output(job))


def _goes_with_output(job: FineTuneJob) -> bool:
    return job.spec.output is not None and job.spec.output.retain is Retain.DELETE


def _was_corrected(job: FineTuneJob) -> bool:
    """Tell whether a job that was refused before its first attempt has a new spec: it may try again."""
    status = job.status
    is_refused = is_true(status.conditions, "Finished") and not status.attempts
    return is_refused and status.observed_generation != job.metadata.generation


def _announced(job: FineTuneJob, plan: Plan) -> Plan:
    if plan.status is None:
        return plan
    return Plan(**{**plan.__dict__, "events": (*plan.events, *transition(job.status, plan.status))})


def _running(observed: Observed, *, besides: int) -> tuple[str, ...]:
    """Return the running runs that are not of the given run."""
    return tuple(r.name for r in observed.runs.values() if r.is_running and r.run != besides)


def _delete(job: FineTuneJob, observed: Observed) -> Plan:
    """End everything; what is retained stays, all else goes."""
    running = tuple(run.name for run in observed.runs.values() if run.is_running)
    if running:
        return Plan(stops=running, requeue_after=1.0)
    retain = job.spec.output.retain if job.spec.output else Retain.RETAIN
    root = output_root(job)
    unfinished = (f"{root}/run-{job.spec.rerun + 1}.incomplete",)
    return Plan(
        removals=tuple(observed.runs),
        removes_work=True,
        removed_outputs=(root,) if retain is Retain.DELETE else unfinished,
        releases_object=True,
    )


def _after_end(job: FineTuneJob, observed: Observed, now: datetime) -> Plan:
    """Remove working files when their time has come. A finished run never starts again."""
    ttl, ended = job.spec.ttl_seconds_after_finished, job.status.completion_time
    running = tuple(run.name for run in observed.runs.values() if run.is_running)
    holds = _goes_with_output(job)
    if running:
        return Plan(stops=running, requeue_after=1.0, holds_object=holds)
    if ttl is None or ended is None or not observed.runs:
        return Plan(holds_object=holds)
    left = seconds_of(ended) + ttl - now.timestamp()
    if left > 0:
        return Plan(requeue_after=left, holds_object=holds)
    return Plan(removals=tuple(observed.runs), removes_work=True, holds_object=holds)


def _pipeline(
    job: FineTuneJob, status: FineTuneJobStatus, observed: Observed, now: datetime
) -> Plan:
    """Walk the steps in order; the first that is not through decides."""
    overdue = _overdue(job, status, observed, now)
    if overdue is not None:
        return overdue
    step = _advance(job, status, observed, prepare.STEP, now)
    if step.result is None or step.result.prepared is None:
        return _plan(job, status, observed, step, prepare.STEP, now)
    prepared = step.result.prepared
    status = _closed(status, step)
    if prepared.adopted is not None:
        return Plan(status=jobstatus.adopted(job, status, prepared, now))
    resolved = train.resolved_values(job, status.run, prepared, observed)
    status = jobstatus.prepared(status, prepared, resolved)
    if not is_true(status.conditions, "Trained"):
        step = _advance(job, status, observed, train.STEP, now, prepared)
        if step.result is None or step.result.trained is None:
            return _plan(job, status, observed, step, train.STEP, now)
        status = jobstatus.trained(job, _closed(status, step), step.result, now)
    for wanted in job.spec.exports or []:
        name = export.step_name(wanted)
        if any(a.uri == export_output(job, status.run, wanted.name) for a in status.artifacts):
            continue
        step = _advance(job, status, observed, name, now, prepared)
        if step.result is None or step.result.exported is None:
            return _plan(job, status, observed, step, name, now)
        status = jobstatus.exported(_closed(status, step), step.result.exported)
    return Plan(status=jobstatus.succeeded(job, status, now))


def _advance(
    job: FineTuneJob,
    status: FineTuneJobStatus,
    observed: Observed,
    step: str,
    now: datetime,
    prepared: PrepareResult | None = None,
) -> Advance:
    policy = job.spec.failure_policy or FailurePolicy()
    training = job.spec.training or Training()

    def make(attempt: Attempt, name: str) -> StepRun:
        if step == prepare.STEP:
            return prepare.step_run(job, status.run, observed, attempt, name)
        assert prepared is not None, "every later step starts from what prepare made"
        if step == train.STEP:
            return train.step_run(job, status.run, observed, prepared, attempt, name)
        wanted = next(e for e in job.spec.exports or [] if export.step_name(e) == step)
        made = export.step_run_of_job(job, status.run, prepared, wanted, attempt, name)
        return replace(made, placement=placement_of(job, observed))

    return advance(
        step,
        status=status,
        metadata=job.metadata,
        run=status.run,
        observed=observed,
        policy=Policy(
            max_restarts=policy.max_restarts,
            may_shrink=step == train.STEP and training.per_device_batch_size is None,
        ),
        make=make,
        now=now,
    )


def _closed(status: FineTuneJobStatus, step: Advance) -> FineTuneJobStatus:
    return status.model_copy(
        update={
            "attempts": step.attempts,
            "restarts": step.restarts,
            "running_seconds": status.running_seconds + step.ran_seconds,
            "usage": _usage(status, step),
        }
    )


def _usage(status: FineTuneJobStatus, step: Advance) -> Usage | None:
    """Return the GPU time so far: only training has GPUs, and only what has ended is counted."""
    resolved = status.resolved
    trains = step.attempts and step.attempts[-1].step == train.STEP
    if resolved is None or resolved.device != "cuda" or not trains or not step.ran_seconds:
        return status.usage
    before = status.usage or Usage()
    return Usage(
        gpu_seconds=before.gpu_seconds + step.ran_seconds * resolved.world_size,
        lost_gpu_seconds=before.lost_gpu_seconds + step.lost_seconds * resolved.world_size,
    )


def _plan(
    job: FineTuneJob,
    status: FineTuneJobStatus,
    observed: Observed,
    step: Advance,
    name: str,
    now: datetime,
) -> Plan:
    """Return the plan of a step that is not through."""
    status = _closed(status, step)
    if step.failure is not None:
        ended = jobstatus.with_last_report(status, step.ended.snapshot if step.ended else None)
        return Plan(status=failed(ended, step.failure, job.metadata, now), events=step.events)
    status = jobstatus.running(job, status, step, name, now)
    return Plan(
        status=status,
        runs=step.runs,
        events=step.events,
        requeue_after=_deadline_left(job, status, observed, now),
    )


def _spent_seconds(
    job: FineTuneJob, status: FineTuneJobStatus, observed: Observed, now: datetime
) -> float:
    """Return the running time so far: ended attempts and the current one; waiting does not count."""
    current = status.attempts[-1] if status.attempts else None
    if current is None or current.end_time is not None:
        return status.running_seconds
    name = run_name(job.metadata, run=status.run, step=current.step, attempt=current.number)
    seen = observed.runs.get(name)
    began = seen.started_at if seen else None
    return status.running_seconds + (now.timestamp() - began if began is not None else 0)


def _deadline_left(
    job: FineTuneJob, status: FineTuneJobStatus, observed: Observed, now: datetime
) -> float | None:
    limit = job.spec.active_deadline_seconds
    return (
        None
        if limit is None
        else max(limit - _spent_seconds(job, status, observed, now), 0.0) + 0.1
    )


def _overdue(
    job: FineTuneJob, status: FineTuneJobStatus, observed: Observed, now: datetime
) -> Plan | None:
    limit = job.spec.active_deadline_seconds
    if limit is None or _spent_seconds(job, status, observed, now) < limit:
        return None
    running = tuple(run.name for run in observed.runs.values() if run.is_running)
    failure = Failure(
        failure_class=FailureClass.DEADLINE,
        message=f"the job ran longer than `spec.activeDeadlineSeconds` {limit}; raise it together with"
        " `spec.rerun` to run again; checkpoints are kept",
        step=status.attempts[-1].step if status.attempts else "prepare",
    )
    closed = jobgates.close_stopped(job, status, observed, now, reason="Deadline")
    return Plan(status=failed(closed, failure, job.metadata, now), stops=running)
