"""Rotary position embedding (arXiv:2104.09864) of queries and keys, after their norms if there are any."""

from dataclasses import dataclass

import torch
from torch import Tensor

from finetune_trainer.fast.kernels import by_triton
from finetune_trainer.fast.kernels.norm import Norm


@dataclass(frozen=True)
class Heads:
    """How a row of queries, keys and values, side by side, is divided."""

    queries: int
    keys: int
    size: int
    query_norm: Norm | None = None
    key_norm: Norm | None = None

    @property
    def width(self) -> int:
        """Columns of queries, keys and values together."""
        return (self.queries + 2 * self.keys) * self.size

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return views [T, heads, size] of queries, keys and values in qkv [T, width]."""
        parts = qkv[:, : self.width].unflatten(1, (-1, self.size))
        query, key, value = parts.split([self.queries, self.keys, self.keys], dim=1)
        return query, key, value


Tables = tuple[Tensor, Tensor]
"""Cosines and sines of the positions; [T, R] each, R <= size: columns beyond are not turned."""


def rotate(qkv: Tensor, tables: Tables, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values ready for attention; [T, heads, size] each.

    Without norms queries and keys are turned in place; with them qkv [T, width] stays as it is.
    """
    if by_triton(qkv):
        from finetune_trainer.fast.kernels.compiled import rotary as compiled

        return compiled.rotate(qkv, tables, heads)
    query, key, value = heads.split(qkv)
    if heads.query_norm is None or heads.key_norm is None:
        for part in (query, key):
            part.copy_(_turned(part, tables))
        return query, key, value
    return (
        _turned(_head_norm(query, heads.query_norm), tables),
        _turned(_head_norm(key, heads.key_norm), tables),
        value,
    )


def rotate_backward(
    gradients: tuple[Tensor, Tensor, Tensor], qkv: Tensor, tables: Tables, heads: Heads, room: int
) -> Tensor:
    """Return the gradient of qkv with room beside it, [T, width + room].

    `gradients` are those of queries, keys and values as attention took them.
    """
    if by_triton(qkv):
        from finetune_trainer.fast.kernels.compiled import rotary as compiled

        return compiled.rotate_backward(gradients, qkv, tables, heads, room)
    cosines, sines = tables
    back = qkv.new_empty(qkv.shape[0], heads.width + room)
    for part, gradient in zip(heads.split(back), gradients, strict=True):
        part.copy_(gradient)
    query, key, _ = heads.split(back)
    raw_query, raw_key, _ = heads.split(qkv)
    for part, raw, norm in (
        (query, raw_query, heads.query_norm),
        (key, raw_key, heads.key_norm),
    ):
        turned = _turned(part, (cosines, -sines))  # the transpose of a rotation turns back
        part.copy_(turned if norm is None else _head_norm_backward(turned, raw, norm))
    return back


def _turned(part: Tensor, tables: Tables) -> Tensor:
    """Return heads [T, h, size] turned; column i goes with column i + R/2."""
    cosines, sines = (table[:, None, :].float() for table in tables)
    width = cosines.shape[-1]
    x, rest = part[..., :width].float(), part[..., width:]
    first, second = x.chunk(2, dim=-1)
    turned = x * cosines + torch.cat((-second, first), dim=-1) * sines
    return torch.cat((turned.to(part.dtype), rest), dim=-1)


def _head_norm(part: Tensor, norm: Norm) -> Tensor:
    x = part.float()
    unit = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps)
    return (unit * (norm.weight.float() + norm.offset)).to(part.dtype)


def _head_norm_backward(gradient: Tensor, part: Tensor, norm: Norm) -> Tensor:
    x, inner = part.float(), gradient.float() * (norm.weight.float() + norm.offset)
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps)
    unit = x * scale
    return (scale * (inner - unit * (inner * unit).mean(-1, keepdim=True))).to(part.dtype)
