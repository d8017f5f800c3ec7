"""RMS norm and the sums around it, by Triton: one program a row."""

import triton
import triton.language as tl
from torch import Tensor

from finetune_trainer.fast.kernels.norm import Norm

WARPS = 8


@triton.jit
def _add_norm(
    rows, change, change_weight, weight, total, wide,
    rows_stride, change_stride, total_stride, wide_stride, change_eps, change_offset, eps, offset,
    WIDTH: tl.constexpr, ADDS: tl.constexpr, NORMS_CHANGE: tl.constexpr, NORMS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Store rows + change, or + norm(change), in total, and norm(total) in wide."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    x = tl.load(rows + row * rows_stride + column, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        d = tl.load(change + row * change_stride + column, mask=inside, other=0.0).to(tl.float32)
        if NORMS_CHANGE:
            scale = tl.load(change_weight + column, mask=inside, other=0.0).to(tl.float32)
            d = d * (1.0 / tl.sqrt(tl.sum(d * d, 0) / WIDTH + change_eps))
            d = (d * (scale + change_offset)).to(total.dtype.element_ty).to(tl.float32)
        x = (x + d).to(total.dtype.element_ty)
        tl.store(total + row * total_stride + column, x, mask=inside)
        x = x.to(tl.float32)
    if NORMS:
        scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32) + offset
        unit = x * (1.0 / tl.sqrt(tl.sum(x * x, 0) / WIDTH + eps))
        normed = (unit * scale).to(wide.dtype.element_ty)
        tl.store(wide + row * wide_stride + column, normed, mask=inside)


@triton.jit
def _norm_backward(
    gradient, rows, weight, residual, wide, normed,
    gradient_stride, rows_stride, residual_stride, wide_stride, normed_stride, eps, offset,
    WIDTH: tl.constexpr, ADDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store the gradient of rows, plus residual, in wide, and norm(rows) again in normed."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    x = tl.load(rows + row * rows_stride + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32) + offset
    arriving = tl.load(gradient + row * gradient_stride + column, mask=inside, other=0.0)
    inner = arriving.to(tl.float32) * scale
    root = 1.0 / tl.sqrt(tl.sum(x * x, 0) / WIDTH + eps)
    unit = x * root
    back = root * (inner - unit * (tl.sum(inner * unit, 0) / WIDTH))
    if ADDS:
        back += tl.load(residual + row * residual_stride + column, mask=inside, other=0.0).to(
            tl.float32
        )
    tl.store(wide + row * wide_stride + column, back.to(wide.dtype.element_ty), mask=inside)
    again = (unit * scale).to(normed.dtype.element_ty)
    tl.store(normed + row * normed_stride + column, again, mask=inside)


def add_norm(
    rows: Tensor, change: Tensor | None, of_change: Norm | None, norm: Norm | None, room: int
) -> tuple[Tensor, Tensor]:
    """Return rows + change, or + of_change(change), [T, H], and norm of it, [T, H + room].

    What is not asked for is `rows` itself.
    """
    count, width = rows.shape
    total = rows if change is None else rows.new_empty(count, width)
    wide = rows if norm is None else rows.new_empty(count, width + room)
    added = rows if change is None else change
    before, after = of_change or norm, norm or of_change
    _add_norm[(count,)](
        rows, added, rows if before is None else before.weight, rows if after is None else after.weight,
        total, wide, rows.stride(0), added.stride(0), total.stride(0), wide.stride(0),
        0.0 if before is None else before.eps, 0.0 if before is None else before.offset,
        0.0 if after is None else after.eps, 0.0 if after is None else after.offset,
        WIDTH=width, ADDS=change is not None, NORMS_CHANGE=of_change is not None, NORMS=norm is not None,
        BLOCK=triton.next_power_of_2(width), num_warps=WARPS,
    )  # fmt: skip
    return total, wide


def norm_backward(
    gradient: Tensor, rows: Tensor, norm: Norm, residual: Tensor | None, room: int
) -> tuple[Tensor, Tensor]:
    """Return the gradient of rows, plus `residual`, [T, H + room], and norm(rows), [T, H]."""
    count, width = rows.shape
    wide = rows.new_empty(count, width + room)
    normed = rows.new_empty(count, width)
    added = gradient if residual is None else residual
    _norm_backward[(count,)](
        gradient, rows, norm.weight, added, wide, normed,
        gradient.stride(0), rows.stride(0), added.stride(0), wide.stride(0), normed.stride(0),
        norm.eps, norm.offset, WIDTH=width, ADDS=residual is not None,
        BLOCK=triton.next_power_of_2(width), num_warps=WARPS,
    )  # fmt: skip
    return wide, normed
