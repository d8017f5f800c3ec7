"""The steps of a job without operator and processes: job files as the operator writes them, in one folder."""

import shutil
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from finetune_api.contract import DatasetInput, ExportInput, Folders, JobFile, PrepareResult
from finetune_api.datasetregistration import DatasetFormat, DatasetRegistration
from finetune_api.finetunejob import FineTuneJob
from finetune_api.modelexport import ExportFormat, ExportSettings
from finetune_api.resolve import Machine, config_digest, resolve
from finetune_api.storage import Location
from finetune_operator.admission import admit
from finetune_operator.steps.files import run_output
from tests.builders import a_dataset, a_job, merged
from tests.fakes.tiny import alpaca_rows, write_jsonl

Changes = dict[str, Any]
EXPORTED = "pvc://merged-output/default/merged"


@dataclass(frozen=True)
class Bench:
    """A folder with a model, rows and everything that steps read and write."""

    folder: Path

    @classmethod
    def made(cls, folder: Path, model: Path) -> "Bench":
        """Return one with a model of its own and 24 rows."""
        shutil.copytree(model, folder / "model")
        write_jsonl(folder / "rows.jsonl", alpaca_rows(24))
        return cls(folder)

    def folders(self, changes: Changes | None = None) -> Folders:
        """Return where a step finds things."""
        names = ("cache", "work", "claims", "secrets")
        places = {name: str(self.folder / name) for name in names}
        return Folders(
            **{"step": str(self.folder), "base": str(self.folder), **places, **(changes or {})}
        )

    def validate_file(self, *changes: Changes) -> JobFile:
        """Return the job file of a registration's validation."""
        registration = admit(reduce(merged, changes, a_dataset()))
        assert isinstance(registration, DatasetRegistration)
        spec = registration.spec
        given = DatasetInput(
            name="rows", spec=spec, digest="", format=spec.format, base=str(self.folder)
        )
        return self._file("validate", "rows", registration=given)

    def prepare_file(self, changes: Changes | None = None) -> JobFile:
        """Return the job file of a job's preparation; its data, `<name>.jsonl` each, is validated."""
        job = admit(merged(a_job(), changes or {}))
        assert isinstance(job, FineTuneJob)
        return self._file(
            "prepare",
            "tiny",
            job=job.spec,
            datasets=[self._validated(dataset.name) for dataset in job.spec.datasets],
            eval_datasets=[self._validated(held.name) for held in job.spec.eval_datasets or []],
            output=run_output(job, 1),
            config_digest=config_digest(job.spec),
        )

    def _validated(self, name: str) -> DatasetInput:
        from finetune_trainer.validate import validate

        asked = self.validate_file({"spec": {"source": {"uri": f"file://{name}.jsonl"}}})
        found = validate(asked)
        assert asked.registration is not None
        found_here = {
            "name": name,
            "digest": found.digest,
            "format": DatasetFormat(found.format),
            "columns": found.columns,
            "tags": found.tags,
        }
        return asked.registration.model_copy(update=found_here)

    def train_file(self, file: JobFile, prepared: PrepareResult) -> JobFile:
        """Return the job file of the training that follows a preparation."""
        assert file.job is not None
        digests = {dataset.name: dataset.digest for dataset in file.datasets}
        resolved = resolve(file.job, prepared, dataset_digests=digests, here=Machine())
        return file.model_copy(update={"step": "train", "prepared": prepared, "resolved": resolved})

    def export_file(self, trained: JobFile) -> JobFile:
        """Return the job file of the export of a training's result."""
        assert trained.prepared is not None
        given = ExportInput(
            settings=ExportSettings(format=ExportFormat.HUGGINGFACE),
            model=Location(uri="file://model"),
            prepared=trained.prepared.model,
            adapters=[Location(uri=trained.output)],
            destination=EXPORTED,
        )
        return self._file("export", "merged", export=given, output=EXPORTED)

    def _file(self, step: str, name: str, **parts: Any) -> JobFile:
        return JobFile.model_validate(
            {
                "step": step,
                "namespace": "default",
                "name": name,
                "uid": f"{name}-uid",
                "folders": self.folders(),
                **parts,
            }
        )
