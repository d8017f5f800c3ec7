"""Gated activations (arXiv:2002.05202): f(gate) * up, f being SiLU, or GELU by tanh."""

import math
from enum import Enum

import torch
from torch import Tensor

from finetune_trainer.fast.kernels import by_triton
from finetune_trainer.fast.kernels.norm import with_room


class Activation(Enum):
    """The f of a gated activation; the value is the kernels' name of it."""

    SILU = 0
    GELU_TANH = 1


def gated(gate_up: Tensor, activation: Activation, room: int) -> Tensor:
    """Return f(gate) * up with room beside it, [T, I + room]; gate_up [T, 2 I] holds both."""
    if by_triton(gate_up):
        from finetune_trainer.fast.kernels.compiled import gate as compiled

        return compiled.gated(gate_up, activation, room)
    gate, up = gate_up.float().chunk(2, dim=1)
    return with_room((_with_slope(gate, activation)[0] * up).to(gate_up.dtype), room)


def gated_backward(
    gradient: Tensor, gate_up: Tensor, activation: Activation, room: int
) -> tuple[Tensor, Tensor]:
    """Return the gradient of gate_up with room beside it, [T, 2 I + room], and f(gate) * up, [T, I]."""
    if by_triton(gate_up):
        from finetune_trainer.fast.kernels.compiled import gate as compiled

        return compiled.gated_backward(gradient, gate_up, activation, room)
    gate, up = gate_up.float().chunk(2, dim=1)
    value, slope = _with_slope(gate, activation)
    arriving = gradient.float()
    back = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] + room)
    width = gate.shape[1]
    back[:, :width] = arriving * up * slope
    back[:, width : 2 * width] = arriving * value
    return back, (value * up).to(gate_up.dtype)


def _with_slope(x: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """Return f(x) and f'(x)."""
    if activation is Activation.SILU:
        s = torch.sigmoid(x)
        return x * s, s * (1 + x * (1 - s))
    root = math.sqrt(2 / math.pi)
    t = torch.tanh(root * (x + 0.044715 * x**3))
    inner = root * (1 + 3 * 0.044715 * x.square())
    return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t.square()) * inner
