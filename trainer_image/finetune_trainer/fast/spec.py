"""What a decoder layer is made of, read off its modules' attributes; no list of model names.

A family whose modules bear the names below, in any of their usual arrangements, needs nothing here.
Whether what was read is all there is to a layer, the probe finds out.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from finetune_trainer.fast import adapters
from finetune_trainer.fast.adapters import NotUnderstood
from finetune_trainer.fast.kernels.gate import Activation
from finetune_trainer.fast.kernels.norm import Norm
from finetune_trainer.fast.kernels.rotary import Heads

ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
}


@dataclass(frozen=True)
class LayerSpec:
    """A layer of the form x + attend(norm(x)), then x + gated(norm(x)), and its settings."""

    query_key_value: list[nn.Module]
    """Linears whose outputs, side by side, are queries, keys and values."""
    attention_out: nn.Module
    gate_up: list[nn.Module]
    """Linears whose outputs, side by side, are gate and up."""
    down: nn.Module
    heads: Heads
    scaling: float
    """Of the products of queries and keys."""
    window: int | None
    """Tokens that one attends to, itself included; None: all before it."""
    activation: Activation
    attention_norm: Norm
    gate_norm: Norm
    after_attention: Norm | None
    """On what attention adds; None in most models."""
    after_gate: Norm | None

    @property
    def linears(self) -> list[nn.Module]:
        """All linears of the layer."""
        return [*self.query_key_value, self.attention_out, *self.gate_up, self.down]


def read(layer: nn.Module) -> LayerSpec:
    """Return the spec of a layer.

    Raises:
        NotUnderstood: it is built otherwise.
    """
    attention, gate = _part(layer, "self_attn"), _part(layer, "mlp")
    query_key_value = _side_by_side(attention, "qkv_proj", ("q_proj", "k_proj", "v_proj"))
    gate_up = _side_by_side(gate, "gate_up_proj", ("gate_proj", "up_proj"))
    out, down = _part(attention, "o_proj"), _part(gate, "down_proj")
    for linear in (*query_key_value, out, *gate_up, down):
        adapters.require_foldable(linear)
    if getattr(attention, "attn_logit_softcapping", None):
        raise NotUnderstood("a soft cap on attention")
    if hasattr(attention, "sinks"):
        raise NotUnderstood("attention sinks")
    if getattr(attention, "is_causal", True) is not True:
        raise NotUnderstood("attention to what comes later")
    if getattr(attention, "attention_dropout", 0.0):
        raise NotUnderstood("dropout in attention")
    before, after, gate_norm, after_gate = _norms(layer)
    return LayerSpec(
        query_key_value=query_key_value,
        attention_out=out,
        gate_up=gate_up,
        down=down,
        heads=_heads(attention, query_key_value, out),
        scaling=float(attention.scaling),
        window=_window(attention),
        activation=_activation(gate),
        attention_norm=before,
        after_attention=after,
        gate_norm=gate_norm,
        after_gate=after_gate,
    )


def _part(module: nn.Module, name: str) -> Any:
    found = getattr(module, name, None)
    if not isinstance(found, nn.Module):
        raise NotUnderstood(f"no `{name}` in {type(module).__name__}")
    return found


def _side_by_side(module: nn.Module, fused: str, split: tuple[str, ...]) -> list[nn.Module]:
    if isinstance(found := getattr(module, fused, None), nn.Module):
        return [found]
    return [_part(module, name) for name in split]


def norm_of(module: nn.Module) -> Norm:
    """Return an RMS norm.

    Raises:
        NotUnderstood: it is another kind of norm.
    """
    name = type(module).__name__
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not name.endswith("RMSNorm") or weight is None or eps is None:
        raise NotUnderstood(f"a norm of class {name}")
    if weight.requires_grad:
        raise NotUnderstood("a norm that is trained")
    return Norm(weight.data, float(eps), 1.0 if "Gemma" in name else 0.0)


def _norms(layer: nn.Module) -> tuple[Norm, Norm | None, Norm, Norm | None]:
    """Return the norms before attention, on what it adds, before the gated part, on what that adds."""
    first = norm_of(_part(layer, "input_layernorm"))
    second = norm_of(_part(layer, "post_attention_layernorm"))
    if not hasattr(layer, "pre_feedforward_layernorm"):
        return first, None, second, None
    third = norm_of(_part(layer, "pre_feedforward_layernorm"))
    return first, second, third, norm_of(_part(layer, "post_feedforward_layernorm"))


def _heads(attention: Any, query_key_value: list[nn.Module], out: nn.Module) -> Heads:
    size = int(attention.head_dim)
    width = sum(adapters.base_of(linear).out_features for linear in query_key_value)
    queries = adapters.base_of(out).in_features // size
    norms: dict[str, Norm] = {}
    if hasattr(attention, "q_norm"):
        norms = {"query_norm": norm_of(attention.q_norm), "key_norm": norm_of(attention.k_norm)}
        if any(norm.weight.shape != (size,) for norm in norms.values()):
            raise NotUnderstood("a norm of queries over all heads at once")
    return Heads(queries, (width // size - queries) // 2, size, **norms)


def _window(attention: Any) -> int | None:
    """Return the window: of the module where it has one, else of the config."""
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window or None
    return getattr(attention.config, "sliding_window", None) or None


def _activation(gate: Any) -> Activation:
    config = gate.config
    name = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if name not in ACTIVATIONS:
        raise NotUnderstood(f"the activation {name}")
    return ACTIVATIONS[name]
