"""`prepare`: model and data are checked and brought into the cache, before any GPU is asked for."""

from finetune_api.contract import DatasetInput, JobFile
from finetune_api.finetunejob import FineTuneJob
from finetune_api.images import prepare_needs_torch
from finetune_api.resolve import config_digest, machine_of
from finetune_api.status import Attempt
from finetune_operator.plan import Key, Observed, StepRun
from finetune_operator.steps.files import base_folder, dataset_input, run_output, variant
from finetune_operator.steps.naming import shared_name, work_claim
from finetune_operator.steps.placement import placement_of

STEP = "prepare"


def job_file(job: FineTuneJob, run: int) -> JobFile:
    """Return what the job files of prepare and train share; train needs no registration."""
    metadata, spec = job.metadata, job.spec
    return JobFile(
        step="prepare",
        namespace=metadata.namespace,
        name=metadata.name,
        uid=metadata.uid,
        run=run,
        job=spec,
        output=run_output(job, run),
        config_digest=config_digest(spec),
    )


def inputs(job: FineTuneJob, observed: Observed) -> dict[str, list[DatasetInput]]:
    """Return the registrations that a job reads, by the fields of the job file."""
    found, spec = observed.datasets, job.spec
    return {
        "datasets": [dataset_input(found[d.name]) for d in spec.datasets],
        "eval_datasets": [dataset_input(found[d.name]) for d in spec.eval_datasets or []],
    }


def step_run(
    job: FineTuneJob, run: int, observed: Observed, attempt: Attempt, name: str
) -> StepRun:
    """Return one attempt at preparing."""
    return StepRun(
        name=name,
        owner=Key("FineTuneJob", job.metadata.namespace, job.metadata.name),
        step=STEP,
        shared_name=shared_name(job.metadata, run=run, step=STEP, variant=variant(job)),
        placement=placement_of(job, observed),
        asks_for_gpus=bool(machine_of(job.spec, here=observed.machine).gpus),
        needs_torch=prepare_needs_torch(job.spec),
        work_claim=work_claim(job.metadata),
        base=base_folder(job.metadata),
        job_file=job_file(job, run).model_copy(
            update={"attempt": attempt.number, **inputs(job, observed)}
        ),
    )
