"""Norms of heads and rotary embedding, by Triton: one program a row of queries, keys and values."""

import triton
import triton.language as tl
from torch import Tensor

from finetune_trainer.fast.kernels.rotary import Heads, Tables

WARPS = 8


@triton.jit
def _turn_heads(
    source, target, weight, start, cosines, sines, eps, offset,
    HEADS: tl.constexpr, HEADS_BLOCK: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr, REST_BLOCK: tl.constexpr, NORMS: tl.constexpr,
):  # fmt: skip
    """Turn some heads of a row: columns i and i + HALF of each; the rest of a head is not turned."""
    head = tl.arange(0, HEADS_BLOCK)[:, None]
    column = tl.arange(0, HALF_BLOCK)[None, :]
    inside = (head < HEADS) & (column < HALF)
    first = start + head * SIZE + column
    a = tl.load(source + first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(source + first + HALF, mask=inside, other=0.0).to(tl.float32)
    if NORMS:
        squares = tl.sum(a * a, 1) + tl.sum(b * b, 1)
        if REST_BLOCK > 0:
            beyond = tl.arange(0, REST_BLOCK)[None, :]
            place = start + head * SIZE + 2 * HALF + beyond
            there = (head < HEADS) & (beyond < SIZE - 2 * HALF)
            c = tl.load(source + place, mask=there, other=0.0).to(tl.float32)
            squares += tl.sum(c * c, 1)
        root = (1.0 / tl.sqrt(squares / SIZE + eps))[:, None]
        low = tl.load(weight + column, mask=column < HALF, other=0.0).to(tl.float32) + offset
        high = (
            tl.load(weight + HALF + column, mask=column < HALF, other=0.0).to(tl.float32) + offset
        )
        # Rounded between norm and rotation, as the model does.
        a = (a * root * low).to(target.dtype.element_ty).to(tl.float32)
        b = (b * root * high).to(target.dtype.element_ty).to(tl.float32)
        if REST_BLOCK > 0:
            beyond = tl.arange(0, REST_BLOCK)[None, :]
            rest = 2 * HALF + beyond
            there = (head < HEADS) & (beyond < SIZE - 2 * HALF)
            scale = tl.load(weight + rest, mask=beyond < SIZE - 2 * HALF, other=0.0).to(tl.float32)
            place = start + head * SIZE + rest
            c = tl.load(source + place, mask=there, other=0.0).to(tl.float32)
            tl.store(
                target + place,
                (c * root * (scale + offset)).to(target.dtype.element_ty),
                mask=there,
            )
    tl.store(target + first, (a * cosines - b * sines).to(target.dtype.element_ty), mask=inside)
    tl.store(
        target + first + HALF, (b * cosines + a * sines).to(target.dtype.element_ty), mask=inside
    )


@triton.jit
def _rotate(
    qkv, target, cosines, sines, query_weight, key_weight,
    qkv_stride, target_stride, table_stride, query_eps, query_offset, key_eps, key_offset,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, QUERIES_BLOCK: tl.constexpr, KEYS_BLOCK: tl.constexpr,
    SIZE: tl.constexpr, HALF: tl.constexpr, HALF_BLOCK: tl.constexpr, REST_BLOCK: tl.constexpr,
    NORMS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, HALF_BLOCK)[None, :]
    cos = tl.load(cosines + row * table_stride + column, mask=column < HALF, other=0.0).to(
        tl.float32
    )
    sin = tl.load(sines + row * table_stride + column, mask=column < HALF, other=0.0).to(tl.float32)
    source = qkv + row * qkv_stride
    into = target + row * target_stride
    _turn_heads(source, into, query_weight, 0, cos, sin, query_eps, query_offset,
                QUERIES, QUERIES_BLOCK, SIZE, HALF, HALF_BLOCK, REST_BLOCK, NORMS)  # fmt: skip
    _turn_heads(source, into, key_weight, QUERIES * SIZE, cos, sin, key_eps, key_offset,
                KEYS, KEYS_BLOCK, SIZE, HALF, HALF_BLOCK, REST_BLOCK, NORMS)  # fmt: skip


@triton.jit
def _turn_heads_back(
    gradient, source, target, weight, start, cosines, sines, eps, offset,
    HEADS: tl.constexpr, HEADS_BLOCK: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr, REST_BLOCK: tl.constexpr, NORMS: tl.constexpr,
):  # fmt: skip
    """Turn the gradients of some heads back, and take them through their norms."""
    head = tl.arange(0, HEADS_BLOCK)[:, None]
    column = tl.arange(0, HALF_BLOCK)[None, :]
    inside = (head < HEADS) & (column < HALF)
    arriving = head * SIZE + column
    place = start + arriving
    da = tl.load(gradient + arriving, mask=inside, other=0.0).to(tl.float32)
    db = tl.load(gradient + arriving + HALF, mask=inside, other=0.0).to(tl.float32)
    a = da * cosines + db * sines
    b = db * cosines - da * sines
    if REST_BLOCK > 0:
        beyond = tl.arange(0, REST_BLOCK)[None, :]
        rest = head * SIZE + 2 * HALF + beyond
        there = (head < HEADS) & (beyond < SIZE - 2 * HALF)
        c = tl.load(gradient + rest, mask=there, other=0.0).to(tl.float32)
    if NORMS:
        xa = tl.load(source + place, mask=inside, other=0.0).to(tl.float32)
        xb = tl.load(source + place + HALF, mask=inside, other=0.0).to(tl.float32)
        squares = tl.sum(xa * xa, 1) + tl.sum(xb * xb, 1)
        low = tl.load(weight + column, mask=column < HALF, other=0.0).to(tl.float32) + offset
        high = (
            tl.load(weight + HALF + column, mask=column < HALF, other=0.0).to(tl.float32) + offset
        )
        a = a * low
        b = b * high
        products = tl.sum(a * xa, 1) + tl.sum(b * xb, 1)
        if REST_BLOCK > 0:
            xc = tl.load(source + start + rest, mask=there, other=0.0).to(tl.float32)
            last = tl.load(weight + 2 * HALF + beyond, mask=beyond < SIZE - 2 * HALF, other=0.0)
            c = c * (last.to(tl.float32) + offset)
            squares += tl.sum(xc * xc, 1)
            products += tl.sum(c * xc, 1)
        root = (1.0 / tl.sqrt(squares / SIZE + eps))[:, None]
        share = (products / SIZE)[:, None] * root * root
        a = root * (a - xa * share)
        b = root * (b - xb * share)
        if REST_BLOCK > 0:
            c = root * (c - xc * share)
    tl.store(target + place, a.to(target.dtype.element_ty), mask=inside)
    tl.store(target + place + HALF, b.to(target.dtype.element_ty), mask=inside)
    if REST_BLOCK > 0:
        tl.store(target + start + rest, c.to(target.dtype.element_ty), mask=there)


@triton.jit
def _rotate_backward(
    queries, keys, values, qkv, target, cosines, sines, query_weight, key_weight,
    queries_stride, keys_stride, values_stride, qkv_stride, target_stride, table_stride,
    query_eps, query_offset, key_eps, key_offset,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, QUERIES_BLOCK: tl.constexpr, KEYS_BLOCK: tl.constexpr,
    SIZE: tl.constexpr, HALF: tl.constexpr, HALF_BLOCK: tl.constexpr, REST_BLOCK: tl.constexpr,
    NORMS: tl.constexpr, VALUES_BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, HALF_BLOCK)[None, :]
    cos = tl.load(cosines + row * table_stride + column, mask=column < HALF, other=0.0).to(
        tl.float32
    )
    sin = tl.load(sines + row * table_stride + column, mask=column < HALF, other=0.0).to(tl.float32)
    source = qkv + row * qkv_stride
    into = target + row * target_stride
    _turn_heads_back(queries + row * queries_stride, source, into, query_weight, 0, cos, sin,
                     query_eps, query_offset, QUERIES, QUERIES_BLOCK, SIZE, HALF, HALF_BLOCK,
                     REST_BLOCK, NORMS)  # fmt: skip
    _turn_heads_back(keys + row * keys_stride, source, into, key_weight, QUERIES * SIZE, cos, sin,
                     key_eps, key_offset, KEYS, KEYS_BLOCK, SIZE, HALF, HALF_BLOCK, REST_BLOCK,
                     NORMS)  # fmt: skip
    place = tl.arange(0, VALUES_BLOCK)
    there = place < KEYS * SIZE
    value = tl.load(values + row * values_stride + place, mask=there)
    tl.store(into + (QUERIES + KEYS) * SIZE + place, value, mask=there)


def _layout(tables: Tables, heads: Heads) -> dict[str, int | bool]:
    half = tables[0].shape[1] // 2
    rest = heads.size - 2 * half
    return {
        "QUERIES": heads.queries, "KEYS": heads.keys,
        "QUERIES_BLOCK": triton.next_power_of_2(heads.queries),
        "KEYS_BLOCK": triton.next_power_of_2(heads.keys),
        "SIZE": heads.size, "HALF": half, "HALF_BLOCK": triton.next_power_of_2(half),
        "REST_BLOCK": triton.next_power_of_2(rest) if rest else 0,
        "NORMS": heads.query_norm is not None,
    }  # fmt: skip


def _norms(heads: Heads, instead: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[float, ...]]:
    if heads.query_norm is None or heads.key_norm is None:
        return (instead, instead), (0.0, 0.0, 0.0, 0.0)
    query, key = heads.query_norm, heads.key_norm
    return (query.weight, key.weight), (query.eps, query.offset, key.eps, key.offset)


def rotate(qkv: Tensor, tables: Tables, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values ready for attention; in place where there are no norms."""
    target = qkv
    if heads.query_norm is not None:
        target = qkv.new_empty(qkv.shape[0], (heads.queries + heads.keys) * heads.size)
    weights, numbers = _norms(heads, qkv)
    _rotate[(qkv.shape[0],)](
        qkv, target, *tables, *weights, qkv.stride(0), target.stride(0), tables[0].stride(0), *numbers,
        **_layout(tables, heads), num_warps=WARPS,
    )  # fmt: skip
    query, key, value = heads.split(qkv)
    if heads.query_norm is not None:
        query, key = target.unflatten(1, (-1, heads.size)).split([heads.queries, heads.keys], dim=1)
    return query, key, value


def rotate_backward(
    gradients: tuple[Tensor, Tensor, Tensor], qkv: Tensor, tables: Tables, heads: Heads, room: int
) -> Tensor:
    """Return the gradient of qkv with room beside it."""
    target = qkv.new_empty(qkv.shape[0], heads.width + room)
    flat = [gradient.flatten(1) for gradient in gradients]
    weights, numbers = _norms(heads, qkv)
    _rotate_backward[(qkv.shape[0],)](
        *flat, qkv, target, *tables, *weights, *(part.stride(0) for part in flat),
        qkv.stride(0), target.stride(0), tables[0].stride(0), *numbers, **_layout(tables, heads),
        VALUES_BLOCK=triton.next_power_of_2(heads.keys * heads.size), num_warps=WARPS,
    )  # fmt: skip
    return target
