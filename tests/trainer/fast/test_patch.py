"""A patched model is an ordinary one to everybody else, and what is not understood stays as it is."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Gemma2Config

from finetune_trainer.fast import spec
from finetune_trainer.fast.patch import patch
from tests.trainer.fast.families import SIZE, family
from tests.trainer.fast.test_gradients import documents, fast, gradients, packed, stock, worst


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**packed(documents()), use_cache=False).logits
    return found


def alone(model: Any) -> torch.Tensor:
    """Return the logits of each document by itself."""
    with torch.no_grad():
        return torch.cat([model(row[None], use_cache=False).logits for row in documents()], dim=1)


def same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("lora", "why"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"lora_dropout": 0.1}, "dropout in adapters"),
        ({"lora_bias": True}, "a bias in adapters"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["o_proj"]}, "ModulesToSaveWrapper"),
    ],
)
def test_other_adapters_stay_stock_and_are_told(lora: dict[str, Any], why: str) -> None:
    model = family("llama with biases", **lora).eval()
    before = alone(model)
    done = patch(model)
    assert done.summary.startswith("0 of 3 layers (3 of them stay stock: ")
    assert why in done.summary
    same(alone(model), before)


def test_another_architecture_stays_stock() -> None:
    config = Gemma2Config(**{**SIZE, "head_dim": 8, "attn_logit_softcapping": 5.0})
    model = get_peft_model(
        AutoModelForCausalLM.from_config(config), LoraConfig(task_type="CAUSAL_LM")
    )
    assert patch(model).stock == {"a soft cap on attention": [0, 1, 2]}


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 3}, {"scaling": 0.3}, {"activation": spec.Activation.GELU_TANH},
    ],
    ids=["window", "scaling", "activation"],
)  # fmt: skip
def test_a_wrong_spec_is_caught(wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = family("mistral"), spec.read
    before = alone(model)
    broken = model.get_base_model().model.layers[1]

    def misread(layer: Any) -> spec.LayerSpec:
        found = read(layer)
        return dataclasses.replace(found, **wrong) if layer is broken else found

    monkeypatch.setattr(spec, "read", misread)
    done = patch(model)
    ((why, numbers),) = done.stock.items()
    assert why.startswith("it computes otherwise")
    assert numbers == [1]
    same(alone(model), before)


def test_a_partly_patched_model_trains_right() -> None:
    model = family("qwen2 with windows")
    model.get_base_model().model.layers[1].self_attn.attention_dropout = 0.5  # none in evaluation
    model.eval()
    wanted_loss, wanted = stock(model, documents())
    done = patch(model)
    assert done.stock == {"dropout in attention": [1]}
    for layout in ("packed", "padded"):
        loss, found = fast(model, documents(), layout)
        assert loss == pytest.approx(wanted_loss, rel=1e-6)
        assert worst(found, wanted) < 1e-5


def test_some_targets_only() -> None:
    model = family("qwen3", target_modules=["v_proj", "gate_proj"], rank_pattern={"v_proj": 2})
    wanted_loss, wanted = stock(model, documents())
    patch(model)
    loss, found = fast(model, documents(), "packed")
    assert loss == pytest.approx(wanted_loss, rel=1e-6)
    assert worst(found, wanted) < 1e-5


def test_adapters_off_and_on_within_one_step() -> None:
    """As preference losses use it: the reference by disabled adapters, before the backward."""
    model = family("llama")
    rows = documents()

    def loss() -> torch.Tensor:
        on = model(rows[0][None], use_cache=False).logits
        with torch.no_grad(), model.disable_adapter():
            off = model(rows[0][None], use_cache=False).logits
        return (on - off).square().sum()

    _, wanted = gradients(model, loss())
    patch(model)
    _, found = gradients(model, loss())
    assert worst(found, wanted) < 1e-5


def test_adapters_change_as_they_are_trained() -> None:
    model = family("llama")
    patch(model)
    before = logits_of(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1)
    assert (logits_of(model) - before).norm() > 1.0


def test_generation_saving_merging(tmp_path: Path) -> None:
    model, other = family("llama"), family("llama")
    prompt = documents()[0][None]
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    wanted = model.generate(input_ids=prompt, **settings)
    before = alone(model)
    done = patch(model)
    assert torch.equal(model.generate(input_ids=prompt, **settings), wanted)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(other.unload(), tmp_path / "adapter")
    same(alone(again), before)
    done.release()
    same(alone(model), before)
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    same(alone(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), before)
