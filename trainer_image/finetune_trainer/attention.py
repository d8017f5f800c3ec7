"""Exact attention over rows laid end to end: each row attends to itself only, and costs only itself.

The stock way builds a mask of the whole pack and computes what it then masks: quadratic in the pack.
Here each row is a slice of its own.
"""

import itertools
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

PACKED = "finetune_packed"
PROBE_ROWS = [torch.arange(1, 9), torch.arange(3, 8)]
PROBE_TOLERANCE = 1e-3
HALF_PROBE_TOLERANCE = 0.2
"""Measured on a 135M model, relative to the logits' norm: bf16 rounding 0.04, rows not kept apart 0.65."""


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [B, H, T, D]  H heads, B x T tokens of all rows, D head size
    key: torch.Tensor,  # [B, K, T, D]  K key-value heads
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
    dropout = dropout if module.training else 0.0
    if query.is_cuda and dropout == 0.0 and cu_seq_lens_q is not None:
        longest = int(other["max_length_q"])
        return _by_flash((query, key, value), cu_seq_lens_q, longest, scaling, sliding_window), None
    batch, _, length, _ = query.shape
    query, key, value = (_end_to_end(tensor) for tensor in (query, key, value))
    ends = (
        list(range(0, batch * length + 1, length))
        if cu_seq_lens_q is None
        else cu_seq_lens_q.tolist()
    )
    settings = {"dropout_p": dropout, "scale": scaling}
    rows = [
        _row_attention(
            *(tensor[:, :, start:end] for tensor in (query, key, value)),
            window=sliding_window,
            **settings,
        )
        for start, end in itertools.pairwise(ends)
    ]
    attended = torch.cat(rows, dim=2).transpose(1, 2)  # [1, B x T, H, D]
    return attended.unflatten(1, (batch, length)).squeeze(0), None


def _end_to_end(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor [B, H, T, D] as [1, H, B x T, D]."""
    return tensor if tensor.shape[0] == 1 else tensor.transpose(0, 1).flatten(1, 2)[None]


def _by_flash(
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ends: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Attend by a GPU's kernel for rows of any lengths; [B, T, H, D]."""
    from torch.nn.attention.varlen import varlen_attn

    batch, heads, length, _ = parts[0].shape
    flat = [part.transpose(1, 2).flatten(0, 1) for part in parts]
    attended = varlen_attn(
        *flat, ends, ends, longest, longest, scale=scaling,
        window_size=(window - 1 if window else -1, 0), enable_gqa=heads != parts[1].shape[1],
    )  # fmt: skip
    return attended.unflatten(0, (batch, length))


def register() -> None:
    """Let models be switched to this attention by its name."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)


def _row_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, window: int | None, **settings: Any
) -> torch.Tensor:  # fmt: skip
    mask = _window(query.shape[2], window, query.device)
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=query.shape[1] != key.shape[1],
        **settings,
    )


def _window(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Return the mask of a sliding window, where a row is longer than it; [T, T]."""
    if not window or length <= window:
        return None
    places = torch.arange(length, device=device)
    distance = places[:, None] - places[None, :]
    return (distance >= 0) & (distance < window)


def use_packed_attention(model: Any) -> bool:
    """Switch a model to packed attention if it then computes what it computed before.

    Models whose attention is of another kind keep theirs.
    """
    from transformers import AttentionInterface

    before, is_training = model.config._attn_implementation, model.training
    model.eval()
    apart = _logits(model, PROBE_ROWS)
    windows: set[int | None] = set()

    def watched(*parts: Any, **settings: Any) -> Any:
        windows.add(settings.get("sliding_window"))
        return packed_attention(*parts, **settings)

    AttentionInterface.register(PACKED, watched)
    try:
        model.set_attn_implementation(PACKED)
        same = _are_close(_logits(model, PROBE_ROWS, packed=True), apart)
    except (ValueError, TypeError, RuntimeError):
        same = False
    AttentionInterface.register(PACKED, packed_attention)
    # The probe's rows are too short to show a window that a model tells its masks only.
    same = same and _declared_windows(model.config.get_text_config()) <= windows
    if not same:
        model.set_attn_implementation(before)
    model.train(is_training)
    return same


def _declared_windows(config: Any) -> set[int | None]:
    names = ("sliding_window", "attention_chunk_size")
    return {window for name in names if (window := getattr(config, name, None))}


@torch.no_grad()
def _logits(model: Any, rows: list[torch.Tensor], *, packed: bool = False) -> torch.Tensor:
    """Return the logits of rows run one by one, or together; [T, V]."""
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = [row.to(model.device) % vocabulary for row in rows]
    if not packed:
        return torch.cat([model(row[None], use_cache=False).logits[0] for row in ids])
    lengths = torch.tensor([0, *map(len, rows)], device=model.device)
    ends = lengths.cumsum(0).to(torch.int32)
    logits = model(
        torch.cat(ids)[None],
        position_ids=torch.cat([torch.arange(len(row)) for row in rows])[None].to(model.device),
        use_cache=False,
        cu_seq_lens_q=ends,
        cu_seq_lens_k=ends,
        max_length_q=int(lengths.max()),
        max_length_k=int(lengths.max()),
    ).logits[0]
    return torch.as_tensor(logits)


def _are_close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    tolerance = PROBE_TOLERANCE if wanted.dtype == torch.float32 else HALF_PROBE_TOLERANCE
    difference = torch.linalg.vector_norm(found.float() - wanted.float())
    return bool(difference <= tolerance * torch.linalg.vector_norm(wanted.float()))
