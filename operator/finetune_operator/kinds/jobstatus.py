"""The status of a FineTuneJob at each point of its way."""

from datetime import datetime

from finetune_api.contract import ExportResult, PrepareResult, Snapshot, Termination
from finetune_api.finetunejob import FineTuneJob, FineTuneJobStatus
from finetune_api.status import Checkpoints, CheckpointState, Estimate, Progress, Resolved
from finetune_operator.conditions import timestamp
from finetune_operator.kinds.report import WAITS, Told, told, with_pods
from finetune_operator.steps import prepare, train
from finetune_operator.steps.attempts import Advance
from finetune_operator.steps.files import run_output

GIB = 1 << 30


def new_run(job: FineTuneJob, run: int, now: datetime) -> FineTuneJobStatus:
    """Return the status of a run that has just begun."""
    status = FineTuneJobStatus(run=run, start_time=timestamp(now))
    types = ("Accepted", "DatasetReady", "Prepared", "Trained", "Succeeded", "Failed", "Suspended")
    words = Told("Pending", "Created", "not looked at yet", {**dict.fromkeys(types), **WAITS})
    return told(status, words, job.metadata, now)


def waiting(
    job: FineTuneJob, status: FineTuneJobStatus, reason: str, message: str, now: datetime
) -> FineTuneJobStatus:
    """Return the status of a job whose data is not ready."""
    accepted = told(
        status,
        Told("Pending", "Valid", "the spec holds together", {"Accepted": True}),
        job.metadata,
        now,
    )
    return told(
        accepted, Told("Pending", reason, message, {"DatasetReady": False}), job.metadata, now
    )


def suspending(job: FineTuneJob, status: FineTuneJobStatus, now: datetime) -> FineTuneJobStatus:
    """Return the status of a job that saves before it is suspended."""
    return told(status, Told("Running", "Suspending", "saving a checkpoint"), job.metadata, now)


def suspended(job: FineTuneJob, status: FineTuneJobStatus, now: datetime) -> FineTuneJobStatus:
    """Return the status of a suspended job."""
    where = f" at step {status.progress.summary}" if status.progress else ""
    message = f"suspended{where}; set `spec.suspend: false` to go on from the last checkpoint"
    return told(
        status, Told("Suspended", "Suspended", message, {"Suspended": True}), job.metadata, now
    )


def prepared(
    status: FineTuneJobStatus, result: PrepareResult, resolved: Resolved
) -> FineTuneJobStatus:
    """Return the status with what prepare found and what was decided from it."""
    estimate = Estimate(
        parameters=_count(result.model.parameters),
        trainable=_count(result.trainable_parameters),
        memory_per_process=f"{result.memory_bytes / GIB:.1f}Gi",
    )
    return status.model_copy(
        update={"data": result.data, "resolved": resolved, "estimate": estimate}
    )


def _count(number: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def running(
    job: FineTuneJob, status: FineTuneJobStatus, step: Advance, name: str, now: datetime
) -> FineTuneJobStatus:
    """Return the status of a job with a step under way."""
    is_restart = step.attempt is not None and step.attempt.number > 1 and step.running is None
    phase = {prepare.STEP: "Preparing", train.STEP: "Running"}.get(name, "Exporting")
    reason = {prepare.STEP: "Preparing", train.STEP: "Training"}.get(name, "Exporting")
    message = {prepare.STEP: "bringing model and data into the cache", train.STEP: "starting"}.get(
        name, f"making export '{name.removeprefix('export-')}'"
    )
    if is_restart:
        phase, reason = "Restarting", "Restarting"
        why = f": {step.last_failure.message}" if step.last_failure else ""
        message = f"attempt {step.attempt.number if step.attempt else 0} of {name} begins{why}"
    snapshot = step.running.snapshot if step.running else None
    ready = Told(
        "Preparing",
        "Valid",
        "every registration is ready",
        {"Accepted": True, "DatasetReady": True, "Suspended": False},
    )
    status = told(status, ready, job.metadata, now)
    if name != prepare.STEP:
        done = Told("Running", "Prepared", "model and data are in the cache", {"Prepared": True})
        status = told(status, done, job.metadata, now)
    changes = {"failure": step.last_failure} if step.last_failure else {}
    words = Told(phase, reason, message, {**WAITS, "Succeeded": None})
    status = told(status, words, job.metadata, now, **changes)
    if name == train.STEP and snapshot is not None and not is_restart:
        # Conditions do not say the step: whoever writes progress writes this message with it.
        status = with_last_report(status, snapshot)
        status = status.model_copy(update={"message": step_message(snapshot.progress)})
    return with_pods(status, step.running, job.metadata, now)


def step_message(progress: Progress) -> str:
    """Return how far training is, in words."""
    return f"step {progress.step} of {progress.total_steps}"


def with_last_report(status: FineTuneJobStatus, snapshot: Snapshot | None) -> FineTuneJobStatus:
    """Return the status with the newest report of the trainer."""
    if snapshot is None:
        return status
    return status.model_copy(
        update={
            "progress": snapshot.progress,
            "metrics": snapshot.metrics,
            "loss_history": snapshot.loss_history,
            "eval_history": snapshot.eval_history,
            "checkpoints": snapshot.checkpoints,
        }
    )


def trained(
    job: FineTuneJob, status: FineTuneJobStatus, end: Termination, now: datetime
) -> FineTuneJobStatus:
    """Return the status of a job whose training is through."""
    assert end.trained is not None, "training that succeeded has a result"
    status = with_last_report(status, end.snapshot)
    final = CheckpointState(step=end.trained.steps, uri=run_output(job, status.run))
    points = (status.checkpoints or Checkpoints()).model_copy(update={"final": final})
    early = (
        " (stopped early: the evaluation loss no longer fell)" if end.trained.stopped_early else ""
    )
    words = Told("Running", "Trained", f"{end.trained.steps} steps{early}", {"Trained": True})
    return told(
        status,
        words,
        job.metadata,
        now,
        artifacts=end.trained.artifacts,
        checkpoints=points,
        failure=None,
    )


def exported(status: FineTuneJobStatus, result: ExportResult) -> FineTuneJobStatus:
    """Return the status with one more artifact."""
    return status.model_copy(update={"artifacts": [*status.artifacts, result.artifact]})


def adopted(
    job: FineTuneJob, status: FineTuneJobStatus, result: PrepareResult, now: datetime
) -> FineTuneJobStatus:
    """Return the status of a job whose result is already there, made from the same inputs."""
    message = f"{run_output(job, status.run)} was made from the same model, data and settings"
    ends = {"Trained": True, "Prepared": True, "Succeeded": True, "Failed": False, "Finished": True}
    words = Told("Succeeded", "AlreadyTrained", message, ends)
    final = CheckpointState(step=result.adopted_steps, uri=run_output(job, status.run))
    return told(
        status,
        words,
        job.metadata,
        now,
        artifacts=result.adopted or [],
        data=result.data,
        checkpoints=Checkpoints(final=final),
        completion_time=timestamp(now),
        failure=None,
    )


def succeeded(job: FineTuneJob, status: FineTuneJobStatus, now: datetime) -> FineTuneJobStatus:
    """Return the status of a job that is through."""
    loss = f", loss {status.metrics.loss}" if status.metrics and status.metrics.loss else ""
    steps = status.progress.summary if status.progress else ""
    ends = {"Succeeded": True, "Failed": False, "Finished": True, "Stalled": False}
    words = Told("Succeeded", "Completed", f"{steps} steps{loss}", ends)
    return told(status, words, job.metadata, now, completion_time=timestamp(now), failure=None)
