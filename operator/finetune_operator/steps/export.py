"""`export`: a trained model in another form, for a job's own exports and for ModelExport alike."""

from finetune_api.adapters import Method
from finetune_api.contract import ExportInput, JobFile, PrepareResult
from finetune_api.finetunejob import FineTuneJob
from finetune_api.modelexport import ExportSettings, JobExport, ModelExport
from finetune_api.status import Attempt
from finetune_api.storage import Location
from finetune_operator.plan import Key, StepRun
from finetune_operator.steps.files import absolute, base_folder, export_output, run_output, variant
from finetune_operator.steps.naming import LONGEST, shared_name, shortened, work_claim

STEP = "export"


def step_name(export: JobExport) -> str:
    """Return the name of a job's export among its steps; a label holds it, so it may be shortened."""
    return shortened(f"export-{export.name}", LONGEST)


def settings_of(export: ExportSettings) -> ExportSettings:
    """Return how to export, without what or where to."""
    return ExportSettings(
        format=export.format, huggingface=export.huggingface, verify=export.verify
    )


def job_result(
    job: FineTuneJob,
    run: int,
    prepared: PrepareResult | None,
    *,
    settings: ExportSettings,
    destination: str,
) -> ExportInput:
    """Return the export of a job's result: its adapter on its base model, or its full weights."""
    base = base_folder(job.metadata)
    result = Location(uri=absolute(run_output(job, run), base))
    is_lora = job.spec.method is Method.LORA
    given = job.spec.model
    model = Location(
        uri=absolute(given.uri, base),
        revision=given.revision,
        credentials_secret_ref=given.credentials_secret_ref,
    )
    return ExportInput(
        settings=settings,
        model=model,
        prepared=prepared.model if prepared else None,
        adapters=[result] if is_lora else [],
        full_model=None if is_lora else result,
        destination=destination,
    )


def step_run_of_job(
    job: FineTuneJob,
    run: int,
    prepared: PrepareResult,
    export: JobExport,
    attempt: Attempt,
    name: str,
) -> StepRun:
    """Return one attempt at a job's own export."""
    destination = export_output(job, run, export.name)
    metadata = job.metadata
    return StepRun(
        name=name,
        owner=Key("FineTuneJob", metadata.namespace, metadata.name),
        step=step_name(export),
        shared_name=shared_name(metadata, run=run, step=step_name(export), variant=variant(job)),
        work_claim=work_claim(metadata),
        base=base_folder(metadata),
        job_file=JobFile(
            step="export",
            namespace=metadata.namespace,
            name=metadata.name,
            uid=metadata.uid,
            run=run,
            attempt=attempt.number,
            output=destination,
            export=job_result(
                job, run, prepared, settings=settings_of(export), destination=destination
            ),
        ),
    )


def destination_of(export: ModelExport) -> str:
    """Return the location of the folder that a ModelExport makes."""
    given = export.spec.destination.uri if export.spec.destination else None
    root = (given or f"pvc://{export.metadata.name}-output").rstrip("/")
    return f"{root}/{export.metadata.namespace}/{export.metadata.name}"


def step_run(
    export: ModelExport, source: ExportInput, base: str, attempt: Attempt, name: str
) -> StepRun:
    """Return one attempt at a ModelExport."""
    metadata = export.metadata
    return StepRun(
        name=name,
        owner=Key("ModelExport", metadata.namespace, metadata.name),
        step=STEP,
        shared_name=shared_name(metadata, run=1, step=STEP, variant=source.model_dump_json()),
        base=base,
        job_file=JobFile(
            step="export",
            namespace=metadata.namespace,
            name=metadata.name,
            uid=metadata.uid,
            attempt=attempt.number,
            output=source.destination,
            export=source,
        ),
    )
