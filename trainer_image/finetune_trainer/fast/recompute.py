"""What layers keep for the backward, and what they compute again: as much is kept as memory allows."""

from dataclasses import dataclass

DROPPED: tuple[frozenset[str], ...] = (
    frozenset(),
    frozenset({"gate_up", "beside_gate_up"}),
    frozenset({"gate_up", "beside_gate_up", "query_key_value", "beside_query_key_value"}),
    frozenset({
        "gate_up", "beside_gate_up", "query_key_value", "beside_query_key_value",
        "middle", "beside_out", "attended",
    }),
    frozenset({
        "gate_up", "beside_gate_up", "query_key_value", "beside_query_key_value",
        "middle", "beside_out", "attended", "out", "of_attention",
    }),
)  # fmt: skip
"""By level, what a layer lets go of; at the last its input alone stays. The down product is never redone."""
ALL = len(DROPPED) - 1
"""The level that keeps least."""


@dataclass(frozen=True)
class LayerBytes:
    """What one layer keeps of a batch at level 0, in bytes, and what each level saves of it."""

    kept: int
    saved: tuple[int, ...]
    """By level, from 0; saved[0] is 0."""


def layer_bytes(
    *, tokens: int, width: int, qkv: int, attended: int, gate_up: int, room: int, element: int,
    norms_after: bool,
) -> LayerBytes:  # fmt: skip
    """Return what a layer keeps: rows x columns x bytes of an element.

    Columns: `width` of the model, `qkv` of queries, keys and values, `attended` of what attention
    returns, `gate_up` of gate and up, `room` of adapters beside a product.
    """
    row = tokens * element
    of_gate_up = row * (gate_up + room)
    of_qkv = row * (qkv + room)
    of_out = row * (width * (2 if norms_after else 1) + room)
    of_attention = row * attended
    always = row * (width * (2 if norms_after else 1) + room)  # the input; beside down
    saved = [0, of_gate_up]
    saved.append(saved[-1] + of_qkv)
    saved.append(saved[-1] + of_out)
    saved.append(saved[-1] + of_attention)
    return LayerBytes(always + saved[-1], tuple(saved))


def levels(free: int, layers: int, one: LayerBytes) -> list[int]:
    """Return the level of each layer so that all of them keep at most `free` bytes.

    A kept byte saves about the same time wherever it is, so layers are filled one after another; what
    is left goes to one layer as far as it goes. Least is kept where even that is too much.
    """
    least = one.kept - one.saved[ALL]
    spare = free - layers * least
    whole = max(0, min(layers, spare // max(one.saved[ALL], 1)))
    found = [0] * whole + [ALL] * (layers - whole)
    if whole < layers:
        rest = spare - whole * one.saved[ALL]
        found[whole] = next(
            (level for level in range(ALL) if one.saved[ALL] - one.saved[level] <= rest), ALL
        )
    return found


def told(chosen: list[int]) -> str:
    """Return how many layers keep how much, in words."""
    words = {0: "everything", ALL: "their input only"}
    counts = {level: chosen.count(level) for level in sorted(set(chosen))}
    return ", ".join(
        f"{words.get(level, f'all but level {level}')} in {count} layers"
        for level, count in counts.items()
    )
