"""Tokens a second of packed and padded runs, and of TRL's own loop on the same packed rows.

The data and, where no other is given, the model are those of the first example.

python benchmarks/packing.py [--repeats 5] [--steps 2] [--rows 16] [--precision fp32]
    [--model FOLDER]
"""

import argparse
import contextlib
import dataclasses
import io
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import transformers
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import SFTTrainer

from finetune_api.adapters import Lora
from finetune_api.contract import DatasetInput, Folders, JobFile
from finetune_api.datasetregistration import DatasetFormat, DatasetRegistrationSpec
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.resolve import Machine, resolve
from finetune_api.yaml_reader import read_documents
from finetune_trainer.adapters import lora_config
from finetune_trainer.attention import use_packed_attention
from finetune_trainer.batch_plan import BatchPlan
from finetune_trainer.callbacks import RunCallback
from finetune_trainer.checkpoints import attempt_folder
from finetune_trainer.models import load_model
from finetune_trainer.prepare import prepare
from finetune_trainer.progress import ProgressReporter
from finetune_trainer.train import build_trainer, plan_of, rows_of, run_of
from finetune_trainer.validate import validate

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples/01-support-assistant.yaml"
PACKED, PADDED, SINGLE = "packed", "padded, all rows at once", "padded, one row at a time"
BARE, BARE_WITH_OURS = "bare TRL, packed", "bare TRL, packed, our attention"
BARE_PADDED = "bare TRL, padded"
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
QUIET_SHARE = 0.05
"""Share of the machine that others may use while figures still count."""


class Stopwatch(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Measures all steps but the first, which warms up."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self.started = self.seconds = 0.0
        self.started_cpu = self.cpu_seconds = 0.0
        self.losses: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Start after the first step; the last one leaves the time of all others."""
        if state.global_step == 1:
            self.started, self.started_cpu = time.perf_counter(), time.process_time()
        self.seconds = time.perf_counter() - self.started
        self.cpu_seconds = time.process_time() - self.started_cpu

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:  # noqa: ARG002
        """Keep the losses: all ways must train the same."""
        if "loss" in logs:
            self.losses.append(logs["loss"])


class Bench:
    """One model, one set of rows, and trainers made of them."""

    def __init__(
        self, folder: Path, model: Path | None, *, rows: int, steps: int, precision: str
    ) -> None:
        """Validate and prepare the data."""
        self._rows, self._steps, self._precision = rows, steps, precision
        documents = read_documents(EXAMPLE.read_text(encoding="utf-8"), source=EXAMPLE.name)
        example = {document["kind"]: document["spec"] for document in documents}
        self._model = {"uri": f"file://{model}"} if model else example["FineTuneJob"]["model"]
        self._file = JobFile(
            step="prepare", namespace="default", name="bench", uid="bench-uid", output="pvc://out/x",
            folders=Folders(
                step=str(folder), cache=str(folder / "cache"), work=str(folder / "work"),
                claims=str(folder / "claims"), base="/",
            ),
            job=self._spec(packed=True, at_once=rows),
        )  # fmt: skip
        given = DatasetInput(
            name="rows", digest="", format=DatasetFormat.ALPACA, base="/",
            spec=DatasetRegistrationSpec.model_validate(example["DatasetRegistration"]),
        )  # fmt: skip
        found = validate(self._file.model_copy(update={"registration": given}))
        given = given.model_copy(update={"digest": found.digest, "columns": found.columns})
        self._file = self._file.model_copy(update={"datasets": [given]})
        self._prepared = prepare(self._file)

    def _spec(self, *, packed: bool, at_once: int) -> FineTuneJobSpec:
        return FineTuneJobSpec.model_validate({
            "model": self._model,
            "datasets": [{"name": "rows"}],
            "data": {"packing": "packed" if packed else "padded"},
            "training": {
                "maxSteps": self._steps + 1, "globalBatchSize": self._rows,
                "perDeviceBatchSize": at_once, "precision": self._precision,
            },
            "workers": {"gpusPerNode": 0},
            "checkpoint": {"everySteps": 1_000_000},
        })  # fmt: skip

    def run(self, *, packed: bool, at_once: int) -> Any:
        """Return the run of a job as the operator would hand it to the trainer."""
        spec = self._spec(packed=packed, at_once=at_once)
        resolved = resolve(spec, self._prepared, dataset_digests={}, here=Machine())
        changes = {"job": spec, "resolved": resolved, "prepared": self._prepared, "step": "train"}
        return run_of(self._file.model_copy(update=changes))

    def plan(self) -> BatchPlan:
        """Return the packed plan: one micro-batch a step."""
        run = self.run(packed=True, at_once=self._rows)
        return plan_of(run, rows_of(run, "train"), shuffled=True)

    def tokens(self) -> int:
        """Return the tokens of the measured steps, without padding."""
        return sum(self.plan().step(0, index).tokens for index in range(1, self._steps + 1))

    def ours(self, *, packed: bool, at_once: int) -> Any:
        """Return our trainer with all that a real run has: log, progress, stop and save checks."""
        run = self.run(packed=packed, at_once=at_once)
        trainer = build_trainer(run)
        reporter = ProgressReporter(run.file, total_steps=self._steps + 1, first_step=0)
        callback = RunCallback(run.file, reporter, is_first_rank=True)
        callback.attach(trainer)
        trainer.add_callback(callback)
        attempt_folder(run.file).mkdir(parents=True, exist_ok=True)
        return trainer

    def bare(self, *, packed: bool, our_attention: bool = False) -> Any:
        """Return TRL's own trainer on the same rows, packed the same, with the same arguments."""
        run = self.run(packed=True, at_once=self._rows)
        model = load_model(run.model_folder, dtype=DTYPES[self._precision], attention="auto")
        if our_attention:
            assert use_packed_attention(model)
        args, tokenizer, rows = self._parts
        plan, steps = self.plan(), self._steps + 1
        layout = {
            "padding_free": packed,
            "per_device_train_batch_size": 1 if packed else self._rows,
        }
        trainer = SFTTrainer(
            model=model,
            # The rows come in the plan's order; TRL would shuffle them.
            args=dataclasses.replace(args, train_sampling_strategy="sequential", **layout),
            processing_class=tokenizer,
            train_dataset=packed_rows(rows, plan, steps)
            if packed
            else rows.select(plan.order(0)[: steps * self._rows]),
            peft_config=lora_config(Lora(), run.resolved),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    @cached_property
    def _parts(self) -> tuple[Any, Any, Dataset]:
        ours = build_trainer(self.run(packed=True, at_once=self._rows))
        return ours.args, ours.processing_class, ours.train_dataset


def packed_rows(rows: Dataset, plan: BatchPlan, steps: int) -> Dataset:
    """Return one dataset row a step: the step's rows laid end to end, as TRL's packing does."""
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], "seq_lengths": []}
    for index in range(steps):
        ((numbers,),) = plan.step(0, index).micro_batches  # one rank, one micro-batch
        parts = [rows[number] for number in numbers]
        for name in ("input_ids", "labels"):
            columns[name].append([token for part in parts for token in part[name]])
        columns["seq_lengths"].append([len(part["input_ids"]) for part in parts])
    return Dataset.from_dict(columns)


def measured(make: Callable[[], Any]) -> Stopwatch:
    """Train once, silently; return the stopwatch."""
    watch = Stopwatch()
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = make()
        trainer.add_callback(watch)
        trainer.train()
    return watch


def busy_seconds() -> float:
    """Return the processor seconds that all processes of this machine have used."""
    user, nice, system, _idle, _wait, *rest = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="measured steps of a repeat")
    parser.add_argument("--rows", type=int, default=16, help="rows of a step")
    parser.add_argument("--precision", choices=list(DTYPES), default="fp32")
    parser.add_argument("--model", type=Path, help="folder of a model; unset: that of the example")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with contextlib.redirect_stderr(io.StringIO()):
            model = chosen.model.resolve() if chosen.model else None
            sizes = {"rows": chosen.rows, "steps": chosen.steps}
            bench = Bench(folder, model, precision=chosen.precision, **sizes)
        started, busy, own = time.perf_counter(), busy_seconds(), sum(os.times()[:4])
        found = measure(bench, chosen.rows, chosen.repeats)
        own = sum(os.times()[:4]) - own
        spent = (time.perf_counter() - started) * (os.cpu_count() or 1)
        report(bench.tokens(), found)
        tell_load(load, max(busy_seconds() - busy - own, 0) / spent)


def measure(bench: Bench, rows: int, repeats: int) -> dict[str, list[Stopwatch]]:
    """Train in every way; repeats take turns."""
    ways: dict[str, Callable[[], Any]] = {
        PACKED: lambda: bench.ours(packed=True, at_once=rows),
        PADDED: lambda: bench.ours(packed=False, at_once=rows),
        SINGLE: lambda: bench.ours(packed=False, at_once=1),
        BARE: lambda: bench.bare(packed=True),
        BARE_WITH_OURS: lambda: bench.bare(packed=True, our_attention=True),
        BARE_PADDED: lambda: bench.bare(packed=False),
    }
    found: dict[str, list[Stopwatch]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, make in ways.items():
            found[name].append(measured(make))
    return found


def report(tokens: int, found: dict[str, list[Stopwatch]]) -> None:
    """Print the table and the ratios."""
    walls = {name: [watch.seconds for watch in watches] for name, watches in found.items()}
    wall = {name: statistics.median(seconds) for name, seconds in walls.items()}
    cpu = {
        name: statistics.median(watch.cpu_seconds for watch in watches)
        for name, watches in found.items()
    }
    print(
        f"{'':34}{'tokens/s':>10}{'least':>8}{'most':>8}{'per CPU second':>16}{'loss off by':>13}"
    )
    for name, watches in found.items():
        pairs = zip(watches[0].losses, found[PACKED][0].losses, strict=True)
        off = max(abs(one - two) for one, two in pairs)
        rates = [tokens / s for s in (wall[name], max(walls[name]), min(walls[name]))]
        print(
            f"{name:34}{rates[0]:10.0f}{rates[1]:8.0f}{rates[2]:8.0f}"
            f"{tokens / cpu[name]:16.0f}{off:13.1e}"
        )
    print("\nTokens/s of packed over that of the others, and by CPU seconds:")
    for name in list(found)[1:]:
        print(f"  {name:32}{wall[name] / wall[PACKED]:10.2f}{cpu[name] / cpu[PACKED]:8.2f}")


def tell_load(before: float, others: float) -> None:
    """Say whether the machine was quiet enough for the figures to count."""
    print(f"\nLoad before: {before:.2f}; others used {others:.0%} of the machine meanwhile.")
    if others > QUIET_SHARE:
        print("The machine was not quiet: of the figures only those by CPU seconds count.")


if __name__ == "__main__":
    main()
