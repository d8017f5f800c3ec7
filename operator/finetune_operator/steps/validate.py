"""`validate`: every row of a registration is read."""

from finetune_api.contract import JobFile
from finetune_api.datasetregistration import DatasetRegistration
from finetune_api.status import Attempt
from finetune_operator.plan import Key, StepRun
from finetune_operator.steps.files import base_folder, dataset_input
from finetune_operator.steps.naming import shared_name

STEP = "validate"


def step_run(registration: DatasetRegistration, run: int, attempt: Attempt, name: str) -> StepRun:
    """Return one attempt at validating."""
    metadata = registration.metadata
    return StepRun(
        name=name,
        owner=Key("DatasetRegistration", metadata.namespace, metadata.name),
        step=STEP,
        shared_name=shared_name(metadata, run=run, step=STEP),
        needs_torch=False,
        base=base_folder(metadata),
        job_file=JobFile(
            step="validate",
            namespace=metadata.namespace,
            name=metadata.name,
            uid=metadata.uid,
            run=run,
            attempt=attempt.number,
            registration=dataset_input(registration),
        ),
    )
