"""Tiny models of the families that the fast path is for, with adapters whose both matrices are random."""

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

SIZE = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"sliding_window": 9}),
    "qwen2": ("qwen2", {}),
    "qwen2 with windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"head_dim": 12}),
    "phi3": ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    "gemma": ("gemma", {"head_dim": 8, "hidden_act": "gelu_pytorch_tanh"}),
    "gemma3": (
        "gemma3_text",
        {"head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 24,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 1, 1]}),
}  # fmt: skip


def family(name: str, *, layers: int = 3, **lora: Any) -> Any:
    """Return a PEFT model of a family, in float32."""
    kind, changes = FAMILIES[name]
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**{**SIZE, **changes, "num_hidden_layers": layers})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for parameter in model.parameters():  # norms and biases too, which start as ones and zeros
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    settings = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", **lora}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    for name_, parameter in adapted.named_parameters():
        if "lora_B" in name_:
            torch.nn.init.normal_(parameter, std=0.1)
    return adapted
