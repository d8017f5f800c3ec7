"""What every step's job file holds: the registrations as validated, the locations of outputs."""

from finetune_api.contract import DatasetInput
from finetune_api.datasetregistration import DatasetFormat, DatasetRegistration
from finetune_api.finetunejob import FineTuneJob
from finetune_api.meta import BASE_FOLDER_ANNOTATION, Metadata


def base_folder(metadata: Metadata) -> str:
    """Return the folder that relative `file://` locations of an object start from."""
    return metadata.annotations.get(BASE_FOLDER_ANNOTATION, "")


def dataset_input(registration: DatasetRegistration) -> DatasetInput:
    """Return a registration as a step reads it."""
    status = registration.status
    return DatasetInput(
        name=registration.metadata.name,
        spec=registration.spec,
        digest=status.digest,
        format=DatasetFormat(status.format) if status.format else registration.spec.format,
        columns=status.columns or registration.spec.columns,
        tags=status.tags or registration.spec.tags,
        invalid_rows=status.invalid_rows,
        base=base_folder(registration.metadata),
    )


def output_root(job: FineTuneJob) -> str:
    """Return the location that all runs of a job share."""
    given = job.spec.output.uri if job.spec.output else None
    root = (given or f"pvc://{job.metadata.name}-output").rstrip("/")
    return f"{root}/{job.metadata.namespace}/{job.metadata.name}"


def run_output(job: FineTuneJob, run: int) -> str:
    """Return the location of a run's result."""
    return f"{output_root(job)}/run-{run}"


def export_output(job: FineTuneJob, run: int, name: str) -> str:
    """Return the location of an export made by a job."""
    return f"{output_root(job)}/exports/{name}/run-{run}"


def absolute(uri: str, base: str) -> str:
    """Return a location that means the same from any manifest's folder."""
    path = uri.removeprefix("file://")
    return uri if path == uri or path.startswith("/") else f"file://{base}/{path}"
