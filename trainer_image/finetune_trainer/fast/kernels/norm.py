"""RMS norm (arXiv:1910.07467) with the residual sums around it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from finetune_trainer.fast.kernels import by_triton


@dataclass(frozen=True)
class Norm:
    """An RMS norm: x / rms(x) * (weight + offset)."""

    weight: Tensor
    """[H]"""
    eps: float
    offset: float = 0.0
    """1 where a model keeps its weights around 0 (Gemma)."""


def with_room(rows: Tensor, room: int) -> Tensor:
    """Return rows [T, H] in a buffer [T, H + room], whose last columns are free."""
    wide = rows.new_empty(rows.shape[0], rows.shape[1] + room)
    wide[:, : rows.shape[1]] = rows
    return wide


def add(rows: Tensor, change: Tensor, norm: Norm | None = None) -> Tensor:
    """Return rows + change, or rows + norm(change); [T, H]."""
    if by_triton(rows):
        from finetune_trainer.fast.kernels.compiled import norm as compiled

        return compiled.add_norm(rows, change, norm, None, 0)[0]
    return rows + (change if norm is None else _norm(change, norm))


def normed(rows: Tensor, norm: Norm, room: int) -> Tensor:
    """Return norm(rows) with room beside it; [T, H + room]."""
    if by_triton(rows):
        from finetune_trainer.fast.kernels.compiled import norm as compiled

        return compiled.add_norm(rows, None, None, norm, room)[1]
    return with_room(_norm(rows, norm), room)


def add_normed(
    rows: Tensor, change: Tensor, of_change: Norm | None, norm: Norm, room: int
) -> tuple[Tensor, Tensor]:
    """Return s = rows + change (or + of_change(change)), [T, H], and norm(s) with room beside it."""
    if by_triton(rows):
        from finetune_trainer.fast.kernels.compiled import norm as compiled

        return compiled.add_norm(rows, change, of_change, norm, room)
    total = add(rows, change, of_change)
    return total, normed(total, norm, room)


def norm_backward(
    gradient: Tensor, rows: Tensor, norm: Norm, residual: Tensor | None, room: int
) -> tuple[Tensor, Tensor]:
    """Return the gradient of `rows`, plus `residual`, with room beside it; and norm(rows) again, [T, H].

    `gradient` [T, H] is that of norm(rows).
    """
    if by_triton(rows):
        from finetune_trainer.fast.kernels.compiled import norm as compiled

        return compiled.norm_backward(gradient, rows, norm, residual, room)
    x, weight = rows.float(), norm.weight.float() + norm.offset
    scale = torch.rsqrt(x.square().mean(1, keepdim=True) + norm.eps)
    unit, inner = x * scale, gradient.float() * weight
    back = scale * (inner - unit * (inner * unit).mean(1, keepdim=True))
    if residual is not None:
        back += residual.float()
    return with_room(back.to(rows.dtype), room), (unit * weight).to(rows.dtype)


def _norm(rows: Tensor, norm: Norm) -> Tensor:
    x = rows.float()
    unit = x * torch.rsqrt(x.square().mean(1, keepdim=True) + norm.eps)
    return (unit * (norm.weight.float() + norm.offset)).to(rows.dtype)
