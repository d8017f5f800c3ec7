"""What every step's job file holds: the registrations as validated, the locations of outputs."""

from finetune_api.contract import DatasetInput, JobFile
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


def variant(job: FineTuneJob) -> str:
    """Return what of a job may change between two attempts of a run: its workers, while suspended."""
    return job.spec.workers.model_dump_json() if job.spec.workers else ""


def output_root(job: FineTuneJob) -> str:
    """Return the location that all runs of a job share."""
    given = job.spec.output.uri if job.spec.output else None
    root = (given or f"pvc://{job.metadata.name}-output").rstrip("/")
    return f"{root}/{job.metadata.namespace}/{job.metadata.name}"


def own_output_claim(file: JobFile) -> str | None:
    """Return the claim that an output without a given location goes to; it is made if need be."""
    if file.step not in ("prepare", "train", "export"):
        return None
    own = f"{file.name}-output"
    return own if file.output.startswith(f"pvc://{own}/") else None


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
