"""Whether a checkpoint's weights are those that its config.json asks for, by names and shapes alone.

What a model needs beyond this only its class knows: loading it, the first thing of training, tells.
"""

import math
import re
from typing import Any

from finetune_trainer.skeleton import Shapes, Skeleton

LAYER = re.compile(r"^(.*?)\.(\d+)\.(.+)$")
PLAIN = frozenset({
    "cohere", "cohere2", "ernie4_5", "exaone4", "gemma", "gemma2", "gemma3_text", "granite", "helium",
    "hyperclovax", "llama", "ministral3", "mistral", "olmo", "olmo2", "olmo3", "qwen2", "qwen3",
    "seed_oss", "smollm3", "stablelm",
})  # fmt: skip
"""Model types whose layers are Llama's, but for norms and biases."""
COUNTED_OTHERWISE = frozenset({"hrm_text", "longcat_flash"})
"""Model types whose `num_hidden_layers` is not the length of one list of layers."""
DEQUANTISED = frozenset({"bitnet", "fp8", "metal", "mxfp4", "mxfp8"})
"""Methods of quantisation that transformers reads without a further library."""
EMBEDDINGS, HEAD = "embed_tokens.weight", "lm_head.weight"


def quantisation(config: Any) -> str:
    """Return by what method a model's weights are quantised; empty: they are not."""
    found = getattr(config, "quantization_config", None) or {}
    method = found.get("quant_method") if isinstance(found, dict) else found.quant_method
    return str(getattr(method, "value", method) or "unknown") if found else ""


def require_loadable(config: Any, skeleton: Skeleton, attention: str) -> None:
    """Refuse what transformers would not load for training, whatever the weights are.

    Raises:
        ValueError: the class lacks the attention asked for, or the quantisation has no library here.
    """
    name, method = skeleton.causal_class, quantisation(config)
    if attention == "sdpa" and name and not skeleton.code.setting(name, "_supports_sdpa"):
        raise ValueError(f"{name} does not support PyTorch's own attention")
    if method and method not in DEQUANTISED:
        raise ValueError(f"it is quantised by {method}, for which the trainer has no library")


def misfits(skeleton: Skeleton) -> list[str]:
    """Return the weights that are missing or of another shape, each with what is wrong."""
    missing, wanted = _missing_layers(skeleton), _wrong_vocabulary(skeleton)
    if skeleton.config.model_type in PLAIN:
        plain = _plain_shapes(skeleton)
        missing |= plain.keys() - skeleton.shapes.keys()
        wanted |= plain
    told = [f"{name}: missing" for name in sorted(missing)]
    return told + [
        f"{name}: {held}, by config.json {wanted[name]}"
        for name, held in sorted(skeleton.shapes.items())
        if wanted.get(name, held) != held
    ]


def _missing_layers(skeleton: Skeleton) -> set[str]:
    """Return the weights of whole layers that the configuration counts and no file holds."""
    stacks: dict[str, dict[int, dict[str, int]]] = {}
    for name, shape in skeleton.shapes.items():
        if found := LAYER.match(name):
            layer = stacks.setdefault(found[1], {}).setdefault(int(found[2]), {})
            layer[found[3]] = math.prod(shape)
    config, wanted = skeleton.config, getattr(skeleton.config, "num_hidden_layers", None)
    several = skeleton.code.composed and len(stacks) > 1  # another model's layers may be the larger
    if not stacks or several or config.model_type in COUNTED_OTHERWISE:
        return set()
    if not isinstance(wanted, int):
        return set()
    prefix, layers = max(stacks.items(), key=lambda item: _size(item[1]))
    return {
        f"{prefix}.{index}.{name}"
        for index in range(wanted)
        if index not in layers
        for name in layers[max((n for n in layers if n < index), default=min(layers))]
    }


def _size(layers: dict[int, dict[str, int]]) -> int:
    return sum(sum(layer.values()) for layer in layers.values())


def _wrong_vocabulary(skeleton: Skeleton) -> Shapes:
    """Return what the embeddings should be, where neither input nor output has the vocabulary's rows."""
    rows = getattr(skeleton.config, "vocab_size", None)
    ends = {name: shape for name, shape in skeleton.shapes.items() if skeleton.is_vocabulary(name)}
    if not isinstance(rows, int) or any(shape[0] == rows for shape in ends.values()):
        return {}
    return {name: (rows, *shape[1:]) for name, shape in ends.items()}


def _plain_shapes(skeleton: Skeleton) -> Shapes:
    """Return the shapes of Llama's weights, by the names that the checkpoint gives them."""
    config = skeleton.config
    hidden, inner, rows = config.hidden_size, config.intermediate_size, config.vocab_size
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or hidden // heads
    keys = (getattr(config, "num_key_value_heads", None) or heads) * size
    layer = {
        "self_attn.q_proj": (heads * size, hidden), "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, heads * size),
        "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    found = (n.removesuffix(EMBEDDINGS) for n in skeleton.shapes if n.endswith(EMBEDDINGS))
    prefix = next(found, "model.")
    shapes: Shapes = {
        f"{prefix}layers.{index}.{name}.weight": shape
        for index in range(config.num_hidden_layers)
        for name, shape in layer.items()
    }
    head = next((name for name in skeleton.shapes if name.endswith(HEAD)), None)
    if head is None and prefix == "model." and not config.tie_word_embeddings:
        head = HEAD
    return shapes | {name: (rows, hidden) for name in (prefix + EMBEDDINGS, head) if name}
