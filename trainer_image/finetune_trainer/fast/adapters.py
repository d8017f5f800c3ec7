"""PEFT's LoRA layers as the fast path sees them: a frozen linear, and the adapter that is on."""

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Adapter:
    """Low-rank matrices beside a linear [N, K]: its change is scaling * up @ down."""

    down: nn.Parameter
    """[r, K]; PEFT's lora_A."""
    up: nn.Parameter
    """[N, r]; PEFT's lora_B."""
    scaling: float


class NotUnderstood(Exception):
    """A layer has something that the fast path does not know; the message says what."""


def base_of(linear: nn.Module) -> Any:
    """Return the frozen linear itself."""
    return getattr(linear, "base_layer", linear)


def is_adapted(linear: nn.Module) -> bool:
    """Tell whether PEFT put adapters beside it."""
    return hasattr(linear, "lora_A")


def active_names(linear: Any) -> tuple[str, ...]:
    """Return the adapters of a layer that are active; none if they are disabled, or merged."""
    if linear.disable_adapters or linear.merged:
        return ()
    return tuple(name for name in linear.active_adapters if name in linear.lora_A)


def adapter_of(linear: Any, names: tuple[str, ...]) -> Adapter | None:
    """Return the adapter of a linear among some names; None: it has none of them."""
    if not is_adapted(linear):
        return None
    name = next((name for name in names if name in linear.lora_A), None)
    if name is None:
        return None
    return Adapter(linear.lora_A[name].weight, linear.lora_B[name].weight, linear.scaling[name])


def require_foldable(linear: Any) -> None:
    """Refuse a linear that is not a plain frozen one with at most one plain adapter.

    Raises:
        NotUnderstood: it is none.
    """
    base = base_of(linear)
    if type(base) is not nn.Linear:
        raise NotUnderstood(f"linears of class {type(base).__name__}")
    if base.weight.requires_grad:
        raise NotUnderstood("trained weights")
    if not is_adapted(linear):
        return
    names = active_names(linear)
    if len(names) > 1:
        raise NotUnderstood("several adapters at once")
    for name in names:
        if name in getattr(linear, "lora_variant", {}):
            raise NotUnderstood("an adapter of another kind (DoRA)")
        if getattr(linear.lora_dropout[name], "p", 0):
            raise NotUnderstood("dropout in adapters")
        if linear.lora_B[name].bias is not None:
            raise NotUnderstood("a bias in adapters")
