"""Exact attention over rows laid end to end: each row attends to itself only, and costs only itself.

The stock way builds a mask of the whole pack and computes what it then masks: quadratic in the pack.
Here each row is a slice of its own.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

PACKED = "finetune_packed"
PROBE_TOLERANCE = 1e-3


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, H, T, D]  H heads, T tokens of all rows, D head size
    key: torch.Tensor,  # [1, K, T, D]  K key-value heads
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each row; `cu_seq_lens_q` [R + 1] holds where rows begin and end."""
    del attention_mask
    if any(other.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise ValueError("attention with a soft cap, sinks or a position bias is not of this kind")
    ends = [0, query.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
    rows = []
    for start, end in zip(ends, ends[1:], strict=False):
        mask = _window(end - start, sliding_window, query.device)
        rows.append(
            scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, start:end],
                value[:, :, start:end],
                attn_mask=mask,
                dropout_p=dropout if module.training else 0.0,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(rows, dim=2).transpose(1, 2), None  # [1, T, H, D]


def _window(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Return the mask of a sliding window, where a row is longer than it; [T, T]."""
    if window is None or length <= window:
        return None
    places = torch.arange(length, device=device)
    distance = places[:, None] - places[None, :]
    return (distance >= 0) & (distance < window)


def use_packed_attention(model: Any) -> bool:
    """Switch a model to packed attention if it then computes what it computed before.

    Two rows are run together and apart. Models whose attention is of another kind keep theirs.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
    before = model.config._attn_implementation
    rows = [torch.arange(1, 9), torch.arange(3, 8)]
    ids = torch.cat(rows)[None] % model.get_input_embeddings().num_embeddings
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
    ends = torch.tensor([0, 8, 13], dtype=torch.int32)
    device = model.device
    is_training = model.training
    model.eval()
    with torch.no_grad():
        apart = torch.cat(
            [model(part.to(device), use_cache=False).logits for part in (ids[:, :8], ids[:, 8:])],
            dim=1,
        )
        try:
            model.set_attn_implementation(PACKED)
            together = model(
                ids.to(device),
                position_ids=positions.to(device),
                use_cache=False,
                cu_seq_lens_q=ends.to(device),
                cu_seq_lens_k=ends.to(device),
                max_length_q=8,
                max_length_k=8,
            ).logits
            same = bool((together - apart).abs().max() <= PROBE_TOLERANCE * apart.abs().max())
        except (ValueError, TypeError, RuntimeError):
            same = False
    if not same:
        model.set_attn_implementation(before)
    model.train(is_training)
    return same
