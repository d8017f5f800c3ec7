"""The layout of a run decides its speed only: losses and weights are the same in every one."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from finetune_api.contract import JobFile
from finetune_trainer.batch_plan import BatchPlan
from finetune_trainer.plan_trainer import step_loader
from finetune_trainer.train import plan_of, rows_of, run_of
from tests.trainer.layouts import (
    BATCH,
    EVAL_ROWS,
    LAYOUTS,
    LOSS_TOLERANCE,
    TIMEOUT_SECONDS,
    Finished,
    Lab,
    assert_same,
    lab,
    reference,
    run_here,
    run_processes,
)

__all__ = ["lab", "reference"]

# peft reads transformers' old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


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
