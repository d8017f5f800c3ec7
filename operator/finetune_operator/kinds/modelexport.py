"""ModelExport: wait for the source, export, verify."""

from dataclasses import replace
from datetime import datetime

from finetune_api.contract import ExportInput, PrepareResult
from finetune_api.finetunejob import FineTuneJob
from finetune_api.modelexport import ModelExport, ModelExportStatus
from finetune_api.storage import Retain
from finetune_operator.conditions import is_true, timestamp
from finetune_operator.kinds.report import (
    WAITS,
    Told,
    failed,
    predecessor_message,
    told,
    transition,
    with_pods,
)
from finetune_operator.plan import Observed, Plan
from finetune_operator.steps import export
from finetune_operator.steps.attempts import Advance, Policy, advance
from finetune_operator.steps.files import base_folder
from finetune_operator.steps.naming import work_claim
from finetune_operator.steps.placement import default_placement


def decide(mex: ModelExport, observed: Observed, now: datetime) -> Plan:
    """Return what an export needs next."""
    metadata, old = mex.metadata, mex.status
    running = tuple(run.name for run in observed.runs.values() if run.is_running)
    if metadata.deletion_timestamp:
        return _delete(mex, observed, running)
    holds = mex.spec.retain is Retain.DELETE
    if is_true(old.conditions, "Finished"):
        return Plan(holds_object=holds)
    if observed.predecessor_pods:
        return Plan(status=_after_predecessor(mex, observed, now), requeue_after=5.0)
    status = old if old.start_time else ModelExportStatus(start_time=timestamp(now))
    source = _source(mex, observed)
    if isinstance(source, Told):
        new = told(status, source, metadata, now)
        return Plan(status=new, events=transition(old, new), holds_object=holds)
    step = advance(
        export.STEP,
        status=status,
        metadata=metadata,
        run=1,
        observed=observed,
        policy=Policy(),
        make=lambda attempt, name: replace(
            export.step_run(mex, source, base_folder(metadata), attempt, name),
            work_claim=_work_claim(mex, source, observed),
            placement=default_placement(observed),
        ),
        now=now,
    )
    new = _status(status, step, mex, now)
    events = (*step.events, *transition(old, new))
    return Plan(status=new, runs=step.runs, events=events, holds_object=holds)


def _after_predecessor(mex: ModelExport, observed: Observed, now: datetime) -> ModelExportStatus:
    words = Told("Pending", "PredecessorEnding", predecessor_message(observed), WAITS)
    return told(mex.status, words, mex.metadata, now)


def _delete(mex: ModelExport, observed: Observed, running: tuple[str, ...]) -> Plan:
    if running:
        return Plan(stops=running, requeue_after=1.0)
    destination = export.destination_of(mex)
    kept = mex.spec.retain is Retain.RETAIN
    return Plan(
        removals=tuple(observed.runs),
        removed_outputs=(f"{destination}.incomplete",)
        if kept
        else (destination, f"{destination}.incomplete"),
        releases_object=True,
    )


def _source(mex: ModelExport, observed: Observed) -> ExportInput | Told:
    """Return what is exported, or why it is not there yet."""
    spec, destination = mex.spec, export.destination_of(mex)
    settings = export.settings_of(spec)
    if spec.source.job_ref is None:
        return ExportInput(
            settings=settings,
            model=spec.source.model,
            adapters=spec.source.adapters or [],
            destination=destination,
        )
    name = spec.source.job_ref.name
    job = observed.jobs.get(name)
    unknown = {"Succeeded": None, **WAITS}
    if job is None:
        message = (
            f"FineTuneJob '{name}' does not exist in namespace '{mex.metadata.namespace}'; create it, or"
            " correct `spec.source.jobRef.name`"
        )
        return Told("Pending", "JobNotFound", message, unknown)
    if not is_true(job.status.conditions, "Trained"):
        state = f"{job.status.phase}: {job.status.message}"
        return Told(
            "Pending",
            "WaitingForJob",
            f"FineTuneJob '{name}' has not trained yet ({state})",
            unknown,
        )
    prepared = _prepared(job, observed)
    return export.job_result(
        job, job.status.run, prepared, settings=settings, destination=destination
    )


def _work_claim(mex: ModelExport, source: ExportInput, observed: Observed) -> str:
    """Return the claim that holds the prepared base model."""
    if source.prepared is None or mex.spec.source.job_ref is None:
        return ""
    return work_claim(observed.jobs[mex.spec.source.job_ref.name].metadata)


def _prepared(job: FineTuneJob, observed: Observed) -> PrepareResult | None:
    """Return what the prepare step of the job's run left, if it stays; the base is fetched else."""
    if job.spec.ttl_seconds_after_finished is not None and observed.machine is None:
        return None  # its claim may go before a pod has mounted it
    for run in observed.job_runs.get(job.metadata.name, {}).values():
        # An earlier run may have tuned another model.
        if run.run == job.status.run and run.termination and run.termination.prepared:
            return run.termination.prepared
    return None


def _status(
    status: ModelExportStatus, step: Advance, mex: ModelExport, now: datetime
) -> ModelExportStatus:
    metadata = mex.metadata
    status = status.model_copy(update={"attempts": step.attempts, "restarts": step.restarts})
    if step.failure is not None:
        return failed(status, step.failure, metadata, now)
    if step.result is None or step.result.exported is None:
        words = Told(
            "Exporting",
            "Exporting",
            "exporting and comparing with base and adapter",
            {"Succeeded": None, **WAITS},
        )
        status = told(status, words, metadata, now)
        return with_pods(status, step.running, metadata, now)
    done = step.result.exported
    ends = {"Succeeded": True, "Failed": False, "Finished": True, "Stalled": False}
    difference = done.verification.max_logit_difference
    words = Told("Succeeded", "Exported", f"verified: logits differ by at most {difference}", ends)
    return told(
        status,
        words,
        metadata,
        now,
        uri=done.artifact.uri,
        size_bytes=done.artifact.size_bytes,
        digest=done.artifact.digest,
        files=done.files,
        verification=done.verification,
        completion_time=timestamp(now),
    )
