"""Which rows make an optimizer step, and how they are laid out. Pure.

An optimizer step takes exactly `batch` dataset rows, in an order that depends on seed and epoch
only: never on the number of processes or the layout. Layout decides speed, nothing else.
"""

import heapq
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Bin = list[int]


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    micro_batches: list[list[Bin]]
    """Row numbers by rank and micro-batch; an empty bin stands for a row without loss."""
    trained_tokens: int
    """Tokens with loss, over all ranks."""
    tokens: int
    """All tokens, over all ranks, without padding."""


@dataclass(frozen=True)
class BatchPlan:
    """The steps of a run. Shapes: lengths, trained [N]; N rows."""

    lengths: npt.NDArray[np.int64]
    trained: npt.NDArray[np.int64]
    batch: int
    world: int
    tokens_cap: int
    """Packed: tokens of a micro-batch, unless one row alone is longer."""
    rows_cap: int
    """Padded: rows of a micro-batch."""
    packed: bool
    seed: int
    shuffled: bool = True

    @cached_property
    def steps_per_epoch(self) -> int:
        """Return the optimizer steps in which every row is used once."""
        return -(-len(self.lengths) // self.batch)

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return the order of rows in an epoch."""
        if not self.shuffled:
            return np.arange(len(self.lengths))
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.lengths))

    def step(self, epoch: int, index: int) -> Step:
        """Return step `index` of an epoch, both from 0."""
        rows = self.order(epoch)[index * self.batch : (index + 1) * self.batch]
        rows = rows[np.lexsort((rows, -self.lengths[rows]))]  # longest first; ties by number
        bins = self._packed_bins(rows) if self.packed else self._padded_bins(rows)
        return Step(
            micro_batches=_dealt(bins, self.world),
            trained_tokens=int(self.trained[rows].sum()),
            tokens=int(self.lengths[rows].sum()),
        )

    def _packed_bins(self, rows: npt.NDArray[np.int64]) -> list[Bin]:
        """Fill the least filled bin first; as few bins a rank as the cap allows."""
        limit = max(self.tokens_cap, int(self.lengths[rows].max()))
        accumulation = max(-(-int(self.lengths[rows].sum()) // (limit * self.world)), 1)
        while True:
            heap = [(0, number) for number in range(accumulation * self.world)]
            bins: list[Bin] = [[] for _ in heap]
            for row in rows:
                filled, number = heapq.heappop(heap)
                bins[number].append(int(row))
                heapq.heappush(heap, (filled + int(self.lengths[row]), number))
            if max(filled for filled, _ in heap) <= limit:
                return sorted(bins, key=self._tokens, reverse=True)
            accumulation += 1

    def _padded_bins(self, rows: npt.NDArray[np.int64]) -> list[Bin]:
        """Put rows of like length together: least padding."""
        share = -(-len(rows) // self.world)
        accumulation = -(-share // self.rows_cap)
        parts = np.array_split(rows, accumulation * self.world)
        return [[int(row) for row in part] for part in parts]

    def _tokens(self, rows: Bin) -> int:
        return int(self.lengths[rows].sum()) if rows else 0


def _dealt(bins: list[Bin], world: int) -> list[list[Bin]]:
    """Deal bins to ranks back and forth, so that long and short ones meet."""
    ranks: list[list[Bin]] = [[] for _ in range(world)]
    for start in range(0, len(bins), world):
        group = bins[start : start + world]
        backwards = (start // world) % 2 == 1
        for rank, rows in enumerate(reversed(group) if backwards else group):
            ranks[rank].append(rows)
    return ranks
