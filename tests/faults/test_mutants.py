"""The plans catch operators that are broken on purpose; without that they would prove nothing."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from finetune_operator.cluster import backend, informer
from finetune_operator.cluster.execute import Executor
from finetune_operator.cluster.status import difference
from finetune_operator.kinds import finetunejob
from finetune_operator.steps import attempts
from tests.faults import runner, workloads
from tests.faults.conftest import RunAll
from tests.faults.plans import FaultPlan
from tests.faults.test_plans import problems, undisturbed

Patch = Callable[[pytest.MonkeyPatch], None]


def skips_the_owner_check(patch: pytest.MonkeyPatch) -> None:
    stock = Executor._once

    async def once(self: Executor, path: str, body: dict[str, Any], uid: str | None) -> bytes:
        return await stock(self, path, body, None)

    patch.setattr(Executor, "_once", once)


def trusts_a_stale_cache(patch: pytest.MonkeyPatch) -> None:
    async def write(api: Any, cache: Any, key: Any, record: Any, status: Any) -> bool:
        path = f"{backend.path_of_kind(key.kind, key.namespace, key.name)}/status"
        changes = difference(orjson.loads(record.status), status)
        if changes:
            await api.patch(path, {"metadata": {}, "status": changes})
        return bool(changes)

    async def relist(_: Any) -> None:
        return None

    patch.setattr(backend, "write_status", write)
    patch.setattr(informer.Informer, "relist", relist)


def counts_attempts_from_children(patch: pytest.MonkeyPatch) -> None:
    stock = attempts.advance

    def advance(step: str, **given: Any) -> Any:
        there = [run for run in given["observed"].runs.values() if run.step == step]
        status = given["status"]
        mine = [a for a in status.attempts if a.step == step][: len(there)]
        others = [a for a in status.attempts if a.step != step]
        given["status"] = status.model_copy(update={"attempts": [*others, *mine]})
        return stock(step, **given)

    patch.setattr(finetunejob, "advance", advance)


MUTANTS: list[tuple[Patch, list[str]]] = [
    (skips_the_owner_check, ["foreign:none"]),
    (trusts_a_stale_cache, [f"{name}:{kind}@{at}" for name in ("reap", "rerun")
                            for kind in ("stale",) for at in range(24, 40, 2)]),
    (counts_attempts_from_children, ["suspend:none", "restart:crash@7", "restart:stale@9"]),
]  # fmt: skip


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("mutate", "plans"), MUTANTS, ids=[m.__name__ for m, _ in MUTANTS])
def test_a_broken_operator_is_caught(
    run_all: RunAll, monkeypatch: pytest.MonkeyPatch, mutate: Patch, plans: list[str]
) -> None:
    given = [FaultPlan.parse(text) for text in plans]
    wanted = undisturbed(run_all, sorted({plan.workload for plan in given}))
    assert not problems(given, run_all(given), wanted), "the sound operator passes them"
    monkeypatch.setattr(runner, "PLAN_SECONDS", 25.0)
    monkeypatch.setattr(workloads, "LONGEST_SECONDS", 20.0)
    mutate(monkeypatch)
    found = problems(given, run_all(given), wanted)
    print(f"{mutate.__name__}: {len(found)} of {len(given)} plans show it")
    assert found
