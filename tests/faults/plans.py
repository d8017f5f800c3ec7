"""What goes wrong, and when: plans that a seed decides and a line of text tells."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = (
    "lost",  # carried out, but the answer never comes
    "crash",  # carried out, and the operator is killed before it knows
    "500", "503", "429", "409",  # refused, not carried out
    "slow",  # carried out late
    "cut",  # every watch ends after it
    "gone",  # every watch ends after it, and its version is too old to go on from
    "stale",  # the operator is killed after it, and its successor's lists are those of before it
)  # fmt: skip
REFUSALS = {"500", "503", "429", "409"}


@dataclass(frozen=True)
class Fault:
    """One fault at the n-th write of the operator, leases not counted; from 1."""

    kind: str
    at: int

    def __str__(self) -> str:
        return f"{self.kind}@{self.at}"


@dataclass(frozen=True)
class FaultPlan:
    """A workload and what goes wrong while it runs."""

    workload: str
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        return f"{self.workload}:{'+'.join(map(str, self.faults)) or 'none'}"

    @classmethod
    def parse(cls, text: str) -> "FaultPlan":
        """Return the plan that a line tells."""
        workload, _, rest = text.partition(":")
        parts = [part.split("@") for part in rest.split("+") if "@" in part]
        return cls(workload, tuple(Fault(kind, int(at)) for kind, at in parts))


def single(workload: str, writes: int) -> Iterator[FaultPlan]:
    """Yield every fault at every write of a workload, one at a time."""
    for at in range(1, writes + 1):
        for kind in KINDS:
            yield FaultPlan(workload, (Fault(kind, at),))


def several(workload: str, writes: int, chance: random.Random) -> FaultPlan:
    """Return a plan of two to four faults."""
    count = chance.randint(2, 4)
    return FaultPlan(
        workload,
        tuple(
            Fault(chance.choice(KINDS), at)
            for at in sorted(chance.randint(1, writes + count) for _ in range(count))
        ),
    )


def chosen(writes: dict[str, int], *, count: int, seed: int) -> list[FaultPlan]:
    """Return plans over all workloads: single faults first in a random order, then several at once."""
    chance = random.Random(seed)
    singles = [plan for name, number in writes.items() for plan in single(name, number)]
    chance.shuffle(singles)
    names = sorted(writes)
    share = singles[: max(2 * count // 3, count - len(singles))]
    rest = [
        several(name := chance.choice(names), writes[name], chance)
        for _ in range(count - len(share))
    ]
    return [*share, *rest]
