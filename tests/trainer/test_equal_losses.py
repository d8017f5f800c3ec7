"""The layout of a run decides its speed only: losses and weights are the same in every one."""

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

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
from finetune_trainer.batch_plan import BatchPlan
from finetune_trainer.plan_trainer import step_loader
from finetune_trainer.prepare import prepare
from finetune_trainer.train import plan_of, rows_of, run_of, train
from finetune_trainer.validate import validate
from tests.builders import a_job, merged
from tests.conftest import PINNED
from tests.fakes.tiny import alpaca_rows, write_jsonl

# peft reads transformers' old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

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


def plan(file: JobFile, name: str = "train") -> BatchPlan:
    run = run_of(file)
    return plan_of(run, rows_of(run, name), shuffled=name == "train")


def plain_losses(model: Any, file: JobFile, name: str, numbers: Sequence[int]) -> float:
    """Return the mean loss over the trained tokens of some rows, by transformers alone."""
    rows, total, tokens = rows_of(run_of(file), name), 0.0, 0
    assert rows is not None
    for number in numbers:
        ids, labels = (torch.tensor([rows[number][key]]) for key in ("input_ids", "labels"))
        trained = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=labels).loss) * trained
        tokens += trained
    return total / tokens


def test_training_moves_the_loss_and_the_weights(reference: Finished) -> None:
    """Runs that learned nothing would be equal too."""
    assert reference.losses[0] - reference.losses[-1] > 0.1
    assert (
        max(
            float(weight.abs().max())
            for name, weight in reference.weights.items()
            if "lora_B" in name
        )
        > 0.01
    )


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "packed"])
def test_layouts_agree(lab: Lab, reference: Finished, layout: str) -> None:
    file = lab.job_file(layout.replace(", ", "-"), layout=layout)
    assert (len(plan(file).step(0, 0).micro_batches[0]) > 1) == (layout != "padded")
    assert_same(run_here(lab, file), reference)


def test_recomputed_activations_change_nothing(lab: Lab, reference: Finished) -> None:
    file = lab.job_file("recomputed", layout="packed", training={"activationCheckpointing": "full"})
    assert file.resolved is not None
    assert file.resolved.activation_checkpointing
    assert_same(run_here(lab, file), reference)


@pytest.mark.timeout(TIMEOUT_SECONDS)
@pytest.mark.parametrize("layout", ["packed, accumulated", "padded"])
def test_two_processes_agree_with_one(
    lab: Lab, reference: Finished, warm_python: str, layout: str
) -> None:
    file = lab.job_file(f"two-{layout.replace(', ', '-')}", layout=layout, processes=2)
    assert plan(file).step(0, 4).micro_batches[1] == [[]]  # this rank has no row there
    assert_same(run_processes(lab, file, warm_python), reference)


def test_full_fine_tuning_agrees_between_layouts(lab: Lab) -> None:
    changes: dict[str, Any] = {"method": "full", "lora": None, "training": {"learningRate": 1e-3}}
    first, second = (
        run_here(lab, lab.job_file(f"full-{layout[:6]}", layout=layout, **changes))
        for layout in ("packed", "padded, uneven")
    )
    assert first.losses[0] - first.losses[-1] > 0.1
    assert_same(second, first)
    config = json.loads((first.output / "config.json").read_text())
    assert not [key for key in config if "attn_implementation" in key]


def test_a_row_that_is_trained_whole_starts_with_no_loss(lab: Lab) -> None:
    """Packed, a row's first token must not be predicted from the row before it."""
    first, second = (
        run_here(lab, lab.job_file(f"whole-{layout}", layout=layout, data={"trainOn": "all"}))
        for layout in ("packed", "padded")
    )
    assert_same(second, first)
    rows, chosen = rows_of(run_of(first.file), "train"), plan(first.file)
    assert rows is not None
    assert all(labels[0] != -100 for labels in rows["labels"])
    assert chosen.trained.tolist() == [len(ids) - 1 for ids in rows["input_ids"]]


def test_the_first_loss_is_that_of_plain_transformers(lab: Lab, reference: Finished) -> None:
    model = AutoModelForCausalLM.from_pretrained(run_of(reference.file).model_folder)
    rows = plan(reference.file).order(0)[:BATCH].tolist()
    found = plain_losses(model, reference.file, "train", rows)
    assert abs(found - reference.losses[0]) <= LOSS_TOLERANCE


def test_the_evaluation_loss_is_the_token_mean_of_plain_transformers(reference: Finished) -> None:
    base = AutoModelForCausalLM.from_pretrained(run_of(reference.file).model_folder)
    model = PeftModel.from_pretrained(base, reference.output)
    found = plain_losses(model, reference.file, "eval", range(EVAL_ROWS))
    assert abs(found - reference.eval_losses[-1]) <= LOSS_TOLERANCE


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loaders_use_every_row_once_and_pad_nothing_when_packed(
    lab: Lab, layout: str, processes: int
) -> None:
    name = f"loaders-{layout.replace(', ', '-')}-{processes}"
    file = lab.job_file(name, layout=layout, processes=processes)
    rows, chosen = rows_of(run_of(file), "train"), plan(file)
    assert rows is not None
    used: list[list[int]] = []
    computed = idle = 0
    for rank in range(processes):
        for step in step_loader(rows, chosen, rank=rank, pad_token_id=0):
            for batch in step["micro"]:
                computed += batch["input_ids"].numel()
                parts = rows_in(batch)
                used += [ids for ids, labels in parts if any(label != -100 for label in labels)]
                idle += sum(len(ids) for ids, labels in parts if set(labels) == {-100})
                assert ("attention_mask" in batch) == (not chosen.packed)
    assert sorted(used) == sorted(rows["input_ids"])
    assert (idle > 0) == (processes == 2)  # the last step's one row leaves a rank without
    padding = computed - idle - int(chosen.lengths.sum())
    assert padding == 0 if chosen.packed or chosen.rows_cap == 1 else padding > 0


def test_the_plan_counts_what_is_trained(reference: Finished) -> None:
    rows, chosen = rows_of(run_of(reference.file), "train"), plan(reference.file)
    assert rows is not None
    assert chosen.lengths.tolist() == [len(ids) for ids in rows["input_ids"]]
    trained = [sum(label != -100 for label in labels[1:]) for labels in rows["labels"]]
    assert chosen.trained.tolist() == trained


def rows_in(batch: dict[str, torch.Tensor]) -> list[tuple[list[int], list[int]]]:
    """Return the rows of a micro-batch, `(input_ids, labels)`, without padding."""
    if "cu_seq_lens_q" in batch:
        sizes = batch["cu_seq_lens_q"].diff().tolist()
        parts = zip(*(batch[key][0].split(sizes) for key in ("input_ids", "labels")), strict=True)
    else:
        sizes = batch["attention_mask"].sum(dim=1).tolist()
        parts = zip(
            *(
                [row[:size] for row, size in zip(batch[key], sizes, strict=True)]
                for key in ("input_ids", "labels")
            ),
            strict=True,
        )
    return [(ids.tolist(), labels.tolist()) for ids, labels in parts]
