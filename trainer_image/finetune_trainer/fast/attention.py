"""Attention over rows laid end to end, forward and backward: each row attends to itself alone."""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class Boundaries:
    """Where rows begin and end in a batch that was laid end to end."""

    ends: Tensor
    """[R + 1] int32; of R rows, the first is 0."""
    longest: int

    @property
    def arguments(self) -> dict[str, Any]:
        """What attention by rows is told of them, in the names of transformers."""
        return {
            "cu_seq_lens_q": self.ends, "cu_seq_lens_k": self.ends,
            "max_length_q": self.longest, "max_length_k": self.longest,
        }  # fmt: skip


Parts = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values; [T, heads, size] each."""


@dataclass(frozen=True)
class Attend:
    """How one layer attends."""

    scaling: float
    window: int | None

    def forward(self, parts: Parts, rows: Boundaries) -> tuple[Tensor, Any]:
        """Return what is attended to, [T, heads, size], and what the backward needs beside it."""
        query, key, value = parts
        if query.is_cuda:
            out, log_sums, *_ = torch.ops.aten._flash_attention_forward(
                query, key, value, rows.ends, rows.ends, rows.longest, rows.longest, 0.0, True,
                False, scale=self.scaling, **self._window_arguments(),
            )  # fmt: skip
            return out, log_sums
        with torch.enable_grad():
            leaves = [part.detach().requires_grad_() for part in parts]
            out = self._by_rows(leaves[0], leaves[1], leaves[2], rows)
        return out.detach(), (out, leaves)

    def backward(
        self, gradient: Tensor, parts: Parts, out: Tensor, kept: Any, rows: Boundaries
    ) -> Parts:
        """Return the gradients of queries, keys and values; [T, heads, size] each."""
        if not gradient.is_cuda:
            found, leaves = kept
            query, key, value = torch.autograd.grad(found, leaves, gradient)
            return query, key, value
        no_dropout = torch.empty(2, dtype=torch.uint64, device=gradient.device)
        query, key, value = torch.ops.aten._flash_attention_backward(
            gradient, *parts, out, kept, rows.ends, rows.ends, rows.longest, rows.longest,
            0.0, True, no_dropout, no_dropout, scale=self.scaling, **self._window_arguments(),
        )  # fmt: skip
        return query, key, value

    def _window_arguments(self) -> dict[str, int]:
        if self.window is None:
            return {}
        return {"window_size_left": self.window - 1, "window_size_right": 0}

    def _by_rows(self, query: Tensor, key: Tensor, value: Tensor, rows: Boundaries) -> Tensor:
        found = []
        for start, end in itertools.pairwise(rows.ends.tolist()):
            q, k, v = (part[start:end].transpose(0, 1)[None] for part in (query, key, value))
            mask = self._mask(end - start, query.device)
            attended = scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=self.scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )  # fmt: skip
            found.append(attended[0].transpose(0, 1))
        return torch.cat(found)

    def _mask(self, length: int, device: torch.device) -> Tensor | None:
        """Return the mask of a window that is shorter than a row; [length, length]."""
        if self.window is None or length <= self.window:
            return None
        places = torch.arange(length, device=device)
        distance = places[:, None] - places[None, :]
        return (distance >= 0) & (distance < self.window)


def boundaries_of(
    shape: tuple[int, int], positions: Tensor | None, mask: Tensor | None, device: torch.device
) -> Boundaries:
    """Work boundaries out for a batch [B, T] that came without them.

    A row begins where a batch row does, where `positions` [B, T] do not go on, and where `mask` [B, T]
    changes: what was padded becomes rows of its own, whose results nobody looks at.
    """
    batch, length = shape
    starts = torch.zeros(batch, length, dtype=torch.bool, device=device)
    starts[:, 0] = True
    if positions is not None and positions.shape[0] == batch:
        starts[:, 1:] |= positions[:, 1:] != positions[:, :-1] + 1
    if mask is not None:
        starts[:, 1:] |= mask[:, 1:].bool() != mask[:, :-1].bool()
    begin = starts.flatten().nonzero().flatten()
    ends = torch.cat([begin, begin.new_tensor([batch * length])]).int()
    return Boundaries(ends, int(ends.diff().max()))
