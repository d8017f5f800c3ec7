"""Attention over packed rows is, row by row, what the model computes for the row alone."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    PhimoeConfig,
    Qwen2Config,
    Qwen3Config,
)
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from finetune_trainer import attention
from finetune_trainer.attention import PACKED, use_packed_attention

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = {**SIZES, "head_dim": 8, "sliding_window": 5}
LENGTHS = [1, 17, 6, 5, 23]  # below, at and above the window of 5

CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "llama-one-key-head": LlamaConfig(**{**SIZES, "num_key_value_heads": 1}),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "mistral-window": MistralConfig(**SIZES, sliding_window=5),
    "qwen2-window": Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "gemma2-window": Gemma2Config(**GEMMA, attn_logit_softcapping=None),  # has no stock sdpa
    "gemma3-window": Gemma3TextConfig(**GEMMA),
}


def tiny(config: Any) -> Any:
    torch.manual_seed(0)
    kind = "eager" if config.model_type in ("gemma2", "gpt_oss") else "sdpa"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=kind)
    for name, weight in model.named_parameters():  # far from uniform attention
        if "q_proj" in name or "k_proj" in name:
            torch.nn.init.normal_(weight, std=0.5)
    return model.float().train()


def rows() -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, 64, (length,), generator=generator).tolist() for length in LENGTHS]
    return [{"input_ids": row, "labels": row} for row in ids]


def packed_logits(model: Any) -> torch.Tensor:
    batch = DataCollatorForLanguageModeling(0, padding_free=True)(rows())
    del batch["labels"]
    return torch.as_tensor(model(**batch, use_cache=False).logits[0])  # [T, V]


def lone_logits(model: Any) -> torch.Tensor:
    parts = [model(torch.tensor([row["input_ids"]]), use_cache=False).logits[0] for row in rows()]
    return torch.cat(parts)  # [T, V]


def gradients(model: Any, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    weights = torch.linspace(-1, 1, logits.numel()).reshape(logits.shape)
    (logits * weights).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_row_attends_as_if_it_were_alone(name: str) -> None:
    model = tiny(CONFIGS[name])
    lone = lone_logits(model)
    lone_gradients = gradients(model, lone)
    assert use_packed_attention(model)
    assert model.config._attn_implementation == PACKED
    assert model.training
    packed = packed_logits(model)
    assert packed.shape[0] == sum(LENGTHS)
    torch.testing.assert_close(packed, lone, rtol=0, atol=1e-5)
    for weight, gradient in gradients(model, packed).items():
        size = float(lone_gradients[weight].abs().max())
        difference = float((gradient - lone_gradients[weight]).abs().max())
        assert difference <= 1e-5 * max(size, 1), weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_are_not_kept_apart_are_noticed(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    model = tiny(CONFIGS["llama"]).to(dtype)
    assert use_packed_attention(model)
    model = tiny(CONFIGS["llama"]).to(dtype)
    kept_apart = attention.packed_attention

    def mixed(*parts: Any, **settings: Any) -> Any:
        return kept_apart(*parts, **{**settings, "cu_seq_lens_q": None})

    monkeypatch.setattr(attention, "packed_attention", mixed)
    assert not use_packed_attention(model)


def test_the_rows_are_long_enough_to_tell_a_window_from_none() -> None:
    wide = tiny(MistralConfig(**SIZES, sliding_window=64))
    narrow = tiny(CONFIGS["mistral-window"])
    with torch.no_grad():
        assert float((lone_logits(wide) - lone_logits(narrow)).abs().max()) > 1e-2


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(Gemma2Config(**GEMMA), id="soft cap"),
        pytest.param(GptOssConfig(**GEMMA, num_local_experts=2, num_experts_per_tok=1), id="sinks"),
        pytest.param(
            PhimoeConfig(**SIZES, num_local_experts=2, sliding_window=64),
            id="window in the mask only",
        ),
    ],
)
def test_attention_of_another_kind_is_kept(config: Any) -> None:
    model = tiny(config)
    before, logits = model.config._attn_implementation, packed_logits(model)
    assert not use_packed_attention(model)
    assert model.config._attn_implementation == before
    assert model.training
    torch.testing.assert_close(packed_logits(model), logits, rtol=0, atol=0)
