"""Gated activations, by Triton: one program a row and a piece of its columns."""

import triton
import triton.language as tl
from torch import Tensor

from finetune_trainer.fast.kernels.gate import Activation

BLOCK = 1024


@triton.jit
def _with_slope(x, ACTIVATION: tl.constexpr):
    """Return f(x) and f'(x); 0: SiLU, 1: GELU by tanh."""
    if ACTIVATION == 0:
        s = tl.sigmoid(x)
        return x * s, s * (1.0 + x * (1.0 - s))
    else:  # noqa: RET505  Triton compiles one of the two
        root: tl.constexpr = 0.7978845608028654  # of 2 / pi
        t = 2.0 * tl.sigmoid(2.0 * root * (x + 0.044715 * x * x * x)) - 1.0
        inner = root * (1.0 + 0.134145 * x * x)
        return 0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner


@triton.jit
def _gated(
    gate_up, wide, gate_up_stride, wide_stride,
    WIDTH: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    start = gate_up + row * gate_up_stride + column
    gate = tl.load(start, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(start + WIDTH, mask=inside, other=0.0).to(tl.float32)
    value, _ = _with_slope(gate, ACTIVATION)
    tl.store(wide + row * wide_stride + column, (value * up).to(wide.dtype.element_ty), mask=inside)


@triton.jit
def _gated_backward(
    gradient, gate_up, wide, activated, gradient_stride, gate_up_stride, wide_stride, activated_stride,
    WIDTH: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    start = gate_up + row * gate_up_stride + column
    gate = tl.load(start, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(start + WIDTH, mask=inside, other=0.0).to(tl.float32)
    arriving = tl.load(gradient + row * gradient_stride + column, mask=inside, other=0.0).to(
        tl.float32
    )
    value, slope = _with_slope(gate, ACTIVATION)
    into = wide + row * wide_stride + column
    tl.store(into, (arriving * up * slope).to(wide.dtype.element_ty), mask=inside)
    tl.store(into + WIDTH, (arriving * value).to(wide.dtype.element_ty), mask=inside)
    again = (value * up).to(activated.dtype.element_ty)
    tl.store(activated + row * activated_stride + column, again, mask=inside)


def gated(gate_up: Tensor, activation: Activation, room: int) -> Tensor:
    """Return f(gate) * up with room beside it, [T, I + room]."""
    count, width = gate_up.shape[0], gate_up.shape[1] // 2
    wide = gate_up.new_empty(count, width + room)
    _gated[(count, triton.cdiv(width, BLOCK))](
        gate_up, wide, gate_up.stride(0), wide.stride(0),
        WIDTH=width, ACTIVATION=activation.value, BLOCK=BLOCK,
    )  # fmt: skip
    return wide


def gated_backward(
    gradient: Tensor, gate_up: Tensor, activation: Activation, room: int
) -> tuple[Tensor, Tensor]:
    """Return the gradient of gate_up, [T, 2 I + room], and f(gate) * up, [T, I]."""
    count, width = gate_up.shape[0], gate_up.shape[1] // 2
    wide = gate_up.new_empty(count, 2 * width + room)
    activated = gate_up.new_empty(count, width)
    _gated_backward[(count, triton.cdiv(width, BLOCK))](
        gradient, gate_up, wide, activated,
        gradient.stride(0), gate_up.stride(0), wide.stride(0), activated.stride(0),
        WIDTH=width, ACTIVATION=activation.value, BLOCK=BLOCK,
    )  # fmt: skip
    return wide, activated
