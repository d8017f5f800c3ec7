"""As much is kept for the backward as memory allows, and never more."""

from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.fast.recompute import ALL, LayerBytes, layer_bytes, levels

LAYER = layer_bytes(
    tokens=8192, width=4096, qkv=6144, attended=4096, gate_up=28672, room=64, element=2,
    norms_after=False,
)  # fmt: skip
GIB = 1 << 30


def kept(found: list[int], one: LayerBytes) -> int:
    return sum(one.kept - one.saved[level] for level in found)


def test_an_8b_model_on_large_and_small_gpus() -> None:
    # Measured on an H100: what each level saves a layer, in GiB.
    for level, measured in enumerate((0.0, 0.429, 0.522, 0.583, 0.644)):
        assert abs(LAYER.saved[level] / GIB - measured) < 0.02
    assert levels(40 * GIB, 32, LAYER) == [0] * 32
    assert levels(2 * GIB, 32, LAYER) == [ALL] * 32
    assert levels(0, 32, LAYER) == [ALL] * 32
    half = levels(11 * GIB, 32, LAYER)
    assert half[0] == 0
    assert half[-1] == ALL


@given(st.integers(0, 64 * GIB), st.integers(1, 100))
def test_what_is_kept_fits_and_little_room_is_left(free: int, layers: int) -> None:
    found = levels(free, layers, LAYER)
    least = layers * (LAYER.kept - LAYER.saved[ALL])
    assert len(found) == layers
    assert kept(found, LAYER) <= max(free, least)
    if ALL in found and free > least:
        assert free - kept(found, LAYER) < 2 * LAYER.kept
