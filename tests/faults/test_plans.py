"""Whatever fails on the way, a workload ends as it would have, and then nothing more is written.

FINETUNE_FAULT_SEED=N takes other plans, FINETUNE_FAULT_PLANS="run:lost@3" these and no others.
"""

import os
import time

import pytest

from tests.faults.conftest import RunAll
from tests.faults.plans import Fault, FaultPlan, chosen
from tests.faults.runner import Broken, Outcome
from tests.faults.workloads import CROWD, WORKLOADS

SEED = int(os.environ.get("FINETUNE_FAULT_SEED", "1"))
EVERY_TIME, EVERY_NIGHT = 160, 1000


def undisturbed(run_all: RunAll, names: list[str]) -> dict[str, Outcome]:
    """Return how workloads end when nothing goes wrong."""
    found = dict(zip(names, run_all([FaultPlan(name, ()) for name in names]), strict=True))
    broken = [str(end) for end in found.values() if isinstance(end, Broken)]
    assert not broken, "\n\n".join(broken)
    return {name: end for name, end in found.items() if isinstance(end, Outcome)}


def problems(
    plans: list[FaultPlan], ends: list[Outcome | Broken], wanted: dict[str, Outcome]
) -> list[str]:
    """Return what is wrong with the ends of plans, one text for each that is."""
    found = []
    for plan, end in zip(plans, ends, strict=True):
        if isinstance(end, Broken):
            found.append(str(end))
        elif end.state != wanted[plan.workload].state:
            missing = [line for line in wanted[plan.workload].state if line not in end.state]
            extra = [line for line in end.state if line not in wanted[plan.workload].state]
            log = "\n".join(end.log)
            found.append(f"{plan}: another end\n- {missing}\n+ {extra}\n{log}")
    return found


def walk(run_all: RunAll, count: int) -> None:
    started = time.monotonic()
    wanted = undisturbed(run_all, sorted(WORKLOADS))
    plans = chosen({name: end.writes for name, end in wanted.items()}, count=count, seed=SEED)
    if given := os.environ.get("FINETUNE_FAULT_PLANS"):
        plans = [FaultPlan.parse(text) for text in given.split()]
    ends = run_all(plans)
    wrong = problems(plans, ends, wanted)
    met = sum(len(end.met) for end in ends if isinstance(end, Outcome))
    seconds = time.monotonic() - started
    print(f"seed {SEED}: {len(plans)} plans, {met} faults met, {len(wrong)} wrong, {seconds:.0f} s")
    assert not wrong, "\n\n".join(wrong[:5])
    assert given or met >= len(plans) * 0.8, "most faults come too late to be met"


@pytest.mark.timeout(900)
def test_plans(run_all: RunAll) -> None:
    walk(run_all, EVERY_TIME)


@pytest.mark.nightly
@pytest.mark.timeout(10_000)
def test_a_thousand_plans(run_all: RunAll) -> None:
    walk(run_all, EVERY_NIGHT)


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_fifty_jobs_at_once(run_all: RunAll) -> None:
    wanted = undisturbed(run_all, sorted(CROWD))
    kinds = ("crash", "cut", "stale", "lost", "409")
    plans = [FaultPlan("crowd", tuple(Fault(kind, at) for at in (20, 90, 200))) for kind in kinds]
    assert not problems(plans, run_all(plans), wanted)
