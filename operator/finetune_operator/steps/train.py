"""`train`: the run itself, on as many processes as were asked for."""

from finetune_api.compute import FailurePolicy
from finetune_api.contract import PrepareResult
from finetune_api.finetunejob import FineTuneJob
from finetune_api.resolve import machine_of, resolve, world_size
from finetune_api.status import Attempt, Resolved
from finetune_operator.plan import Key, Observed, StepRun
from finetune_operator.steps import prepare
from finetune_operator.steps.files import base_folder, variant
from finetune_operator.steps.naming import shared_name, work_claim
from finetune_operator.steps.placement import grace_seconds, placement_of

STEP = "train"


def resolved_values(
    job: FineTuneJob, run: int, prepared: PrepareResult, observed: Observed
) -> Resolved:
    """Return every value of the run, decided from what prepare found.

    What was once decided for a run stays: another version of the operator, with other defaults, must
    not change a run in the middle.
    """
    machine = machine_of(job.spec, here=observed.machine)
    kept = job.status.resolved if job.status.run == run else None
    if kept is not None and (kept.device, kept.world_size) == (
        machine.device,
        world_size(job.spec, machine),
    ):
        return kept
    return resolve(
        job.spec,
        prepared,
        dataset_digests={
            name: found.status.digest
            for d in job.spec.datasets
            if (found := observed.datasets.get(name := d.name))
        },
        here=observed.machine,
    )


def step_run(
    job: FineTuneJob,
    run: int,
    observed: Observed,
    prepared: PrepareResult,
    attempt: Attempt,
    name: str,
) -> StepRun:
    """Return one attempt at training."""
    placement = placement_of(job, observed)
    policy = job.spec.failure_policy or FailurePolicy()
    resolved = resolved_values(job, run, prepared, observed)
    file = prepare.job_file(job, run).model_copy(
        update={
            "step": "train",
            "attempt": attempt.number,
            "micro_batch_divisor": attempt.micro_batch_divisor,
            "prepared": prepared,
            "resolved": resolved,
            "devices": machine_of(job.spec, here=observed.machine).gpus,
            "processes": resolved.world_size,
            "stall_timeout_seconds": policy.stall_timeout_seconds,
            "grace_period_seconds": grace_seconds(placement),
        }
    )
    return StepRun(
        name=name,
        owner=Key("FineTuneJob", job.metadata.namespace, job.metadata.name),
        step=STEP,
        shared_name=shared_name(job.metadata, run=run, step=STEP, variant=variant(job)),
        placement=placement,
        work_claim=work_claim(job.metadata),
        base=base_folder(job.metadata),
        job_file=file,
    )
