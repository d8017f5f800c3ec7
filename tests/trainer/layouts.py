"""One model and one set of rows, and what runs over them leave."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune_api.contract import (
    JOB_FILE,
    TRAINER_LOG_FILE,
    DatasetInput,
    Folders,
    JobFile,
)
from finetune_api.datasetregistration import DatasetFormat, DatasetRegistrationSpec
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.resolve import Machine, resolve
from finetune_trainer.prepare import prepare
from finetune_trainer.train import train
from finetune_trainer.validate import validate
from tests.builders import a_job, merged
from tests.conftest import PINNED
from tests.fakes.tiny import alpaca_rows, write_jsonl

ROWS, BATCH = 25, 6  # the last step has one row: with two processes one of them has none
EVAL_ROWS = 7
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-5, 1e-4
TIMEOUT_SECONDS = 300

LAYOUTS = {
    "packed": {"packing": "packed", "rows": BATCH},
    "packed, accumulated": {"packing": "packed", "rows": 1},
    "padded": {"packing": "padded", "rows": BATCH},
    "padded, accumulated": {"packing": "padded", "rows": 1},
    "padded, uneven": {"packing": "padded", "rows": 4},
}


@dataclass
class Lab:
    """A folder with one model and one set of rows; runs share what is prepared from them."""

    folder: Path
    file: JobFile

    def job_file(self, name: str, *, layout: str, processes: int = 1, **spec: Any) -> JobFile:
        """Return the job file of a train step."""
        chosen = LAYOUTS[layout]
        assert self.file.job is not None
        body = merged(
            self.file.job.model_dump(mode="json", by_alias=True, exclude_none=True),
            {
                "data": {"packing": chosen["packing"]},
                "training": {"perDeviceBatchSize": chosen["rows"]},
                "workers": {"processesPerNode": processes},
            },
        )
        job = FineTuneJobSpec.model_validate(merged(body, spec))
        step = self.folder / "steps" / name
        step.mkdir(parents=True)
        places = {"step": str(step), "work": str(self.folder / "work" / name)}
        changes = {
            "name": name, "job": job, "processes": processes, "output": f"pvc://out/{name}",
            "folders": self.file.folders.model_copy(update=places),
        }  # fmt: skip
        file = self.file.model_copy(update=changes)
        prepared = prepare(file)
        resolved = resolve(job, prepared, dataset_digests={}, here=Machine())
        return file.model_copy(update={"step": "train", "prepared": prepared, "resolved": resolved})

    def finished(self, file: JobFile) -> "Finished":
        """Read what a run left behind."""
        output = self.folder / "claims" / "out" / file.name
        lines = [json.loads(line) for line in (output / TRAINER_LOG_FILE).read_text().splitlines()]
        weights = next(output.glob("*model.safetensors"))
        return Finished(
            file=file,
            output=output,
            losses=[line["loss"] for line in lines if "loss" in line],
            eval_losses=[line["eval_loss"] for line in lines if "eval_loss" in line],
            weights=load_file(weights),
        )


@dataclass
class Finished:
    """A finished run."""

    file: JobFile
    output: Path
    losses: list[float]
    eval_losses: list[float]
    weights: dict[str, torch.Tensor]


def dataset(file: JobFile, name: str, rows: list[dict[str, str]]) -> DatasetInput:
    """Write rows and return them as validated."""
    write_jsonl(Path(file.folders.base) / f"{name}.jsonl", rows)
    spec = DatasetRegistrationSpec.model_validate({"source": {"uri": f"file://{name}.jsonl"}})
    given = DatasetInput(
        name=name, spec=spec, digest="", format=DatasetFormat.ALPACA, base=file.folders.base
    )
    found = validate(file.model_copy(update={"registration": given}))
    return given.model_copy(update={"digest": found.digest, "columns": found.columns})


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    (folder / "model").symlink_to(model_folder)
    manifest = a_job(
        lora={"dropout": 0.0},
        data={"maxLength": 96},
        training={"maxSteps": None, "epochs": 2, "globalBatchSize": BATCH, "evalSteps": 5},
        evalDatasets=[{"name": "eval"}],
        checkpoint={"everySteps": 1000},
    )
    rows = alpaca_rows(ROWS + EVAL_ROWS)
    file = JobFile(
        step="prepare", namespace="default", name="tiny", uid="12345678-uid",
        folders=Folders(
            step=str(folder), cache=str(folder / "cache"), work=str(folder / "work"),
            claims=str(folder / "claims"), base=str(folder),
        ),
        job=FineTuneJobSpec.model_validate(manifest["spec"]),
        output="pvc://out/tiny",
    )  # fmt: skip
    data = {
        "datasets": [dataset(file, "rows", rows[:ROWS])],
        "eval_datasets": [dataset(file, "eval", rows[ROWS:])],
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Lab(folder, file.model_copy(update=data))
    torch.set_num_threads(threads)


def run_processes(lab: Lab, file: JobFile, python: str) -> Finished:
    path = Path(file.folders.step) / JOB_FILE
    path.write_text(file.model_dump_json(by_alias=True, exclude_none=True), encoding="utf-8")
    ran = subprocess.run(
        [python, "-m", "finetune_trainer", "run", "--job-file", str(path)],
        env={**os.environ, **PINNED, "FINETUNE_TRAINER_PYTHON": python}, capture_output=True, text=True, timeout=TIMEOUT_SECONDS,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return lab.finished(file)


def run_here(lab: Lab, file: JobFile) -> Finished:
    result = train(file)
    assert result is not None
    assert result.steps == result.total_steps == 10
    return lab.finished(file)


@pytest.fixture(scope="module")
def reference(lab: Lab) -> Finished:
    """Return the packed run in one process that all others are compared with."""
    return run_here(lab, lab.job_file("reference", layout="packed"))


def assert_same(found: Finished, wanted: Finished) -> None:
    assert len(found.losses) == len(wanted.losses) == 10
    assert len(found.eval_losses) == len(wanted.eval_losses) == 2
    for mine, theirs in ((found.losses, wanted.losses), (found.eval_losses, wanted.eval_losses)):
        difference = max(abs(one - two) for one, two in zip(mine, theirs, strict=True))
        print(f"{found.file.name}: loss {difference:.1e}")
        assert difference <= LOSS_TOLERANCE
    assert found.weights.keys() == wanted.weights.keys()
    difference = max(
        float((found.weights[name] - wanted.weights[name]).abs().max()) for name in wanted.weights
    )
    print(f"{found.file.name}: weights {difference:.1e}")
    assert difference <= WEIGHT_TOLERANCE
