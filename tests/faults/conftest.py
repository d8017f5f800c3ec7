"""A real API server, a profile that keeps its nodes out, and pods that are played."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from finetune_operator.cluster import controller
from finetune_operator.cluster.client import ApiServer
from finetune_operator.cluster.login import Login, log_in
from tests.cluster import Access
from tests.e2e.lab import apply_crds
from tests.faults.api import FaultyApiServer
from tests.faults.kubelet import Kubelet
from tests.faults.plans import FaultPlan
from tests.faults.runner import PROFILE, Broken, Outcome, Runner

AT_ONCE = 10

# An operator that is killed leaves connections behind that were just being made.
KILLED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

RunAll = Callable[[list[FaultPlan]], list[Outcome | Broken]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let plans kill operators."""
    for item in items:
        if "run_all" in getattr(item, "fixturenames", ()):
            item.add_marker(KILLED)


@pytest.fixture(scope="session")
def api_login(cluster: Access) -> Iterator[Login]:
    """Return an administrator's login, and a profile for pods that no node takes."""
    apply_crds(cluster)
    cluster.apply({
        "apiVersion": "finetune.dev/v1alpha1", "kind": "WorkerProfile",
        "metadata": {"name": PROFILE, "annotations": {"finetune.dev/is-default-profile": "true"}},
        "spec": {
            "namespaceSelector": {"matchLabels": {"finetune.dev/test": PROFILE}},
            "nodeSelector": {"finetune.dev/test": "faults"},
        },
    })  # fmt: skip
    yield log_in(str(cluster.kubeconfig))
    # Tests elsewhere that import this fixture have one of their own, and the same profile.
    cluster.kubectl("delete", "workerprofile", PROFILE, "--ignore-not-found")


@asynccontextmanager
async def runner(login: Login) -> AsyncIterator[Runner]:
    """Give a runner whose pods are played meanwhile."""
    async with ApiServer(login) as api:
        kubelet = Kubelet(api)
        playing = asyncio.create_task(kubelet.run())
        try:
            yield Runner(login, api, kubelet)
        finally:
            playing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await playing


@pytest.fixture
def run_all(api_login: Login, monkeypatch: pytest.MonkeyPatch) -> RunAll:
    """Return what runs plans, ten at a time, and returns how each ended."""
    monkeypatch.setattr(controller, "ApiServer", FaultyApiServer)

    async def all_of(plans: list[FaultPlan]) -> list[Outcome | Broken]:
        turns = asyncio.Semaphore(AT_ONCE)
        async with runner(api_login) as ready:

            async def one(plan: FaultPlan) -> Outcome | Broken:
                async with turns:
                    try:
                        return await ready.run(plan)
                    except Broken as broken:
                        return broken

            return await asyncio.gather(*map(one, plans))

    return lambda plans: asyncio.run(all_of(plans))
