"""Fixtures of tests that need a cluster: this machine's own, or the one FINETUNE_TEST_KUBECONFIG names."""

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.cluster import Access, Cluster, default_state
from tests.cluster.commands import ClusterError, lock
from tests.cluster.machine import cache, why_not
from tests.cluster.processes import command_of

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Access]:
    """Return a running cluster; a `Cluster`, whose nodes can be stopped, if it is this machine's own."""
    if given := os.environ.get("FINETUNE_TEST_KUBECONFIG"):
        yield Access(Path(given))
        return
    if reason := why_not():
        pytest.skip(f"no test cluster: {reason}")
    with ExitStack() as stack:
        try:
            own = stack.enter_context(used(Cluster(default_state())))
        except ClusterError as error:
            # A machine that cannot host one is no fault of the code; who relies on it says so.
            if os.environ.get("FINETUNE_REQUIRE_CLUSTER"):
                raise
            pytest.skip(f"the test cluster does not come up here: {error}")
        yield own


@pytest.fixture
def own_cluster(cluster: Access) -> Cluster:
    """Return a cluster whose nodes and API server can be stopped."""
    if not isinstance(cluster, Cluster):
        pytest.skip("a test that stops nodes does so on a cluster of its own only")
    return cluster


@pytest.fixture
def namespace(cluster: Access) -> Iterator[str]:
    """Return a fresh namespace that takes restricted pods only."""
    with fresh_namespace(cluster) as name:
        yield name


@contextmanager
def fresh_namespace(access: Access, labels: dict[str, str] = RESTRICTED) -> Iterator[str]:
    """Make a namespace with labels, and delete it afterwards."""
    if isinstance(access, Cluster):
        access.add_volumes()
    name = f"test-{uuid.uuid4().hex[:8]}"
    metadata = {"name": name, "labels": labels}
    access.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    try:
        # Pods are refused until the controller manager has made the account they run as.
        access.kubectl(
            "wait", "--for=create", "serviceaccount/default", f"--namespace={name}", "--timeout=60s"
        )
        yield name
    finally:
        access.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")


@contextmanager
def used(own: Cluster) -> Iterator[Cluster]:
    """Start the cluster for the first of several test processes, stop it after the last.

    One that ran before the tests is left running, so is any with FINETUNE_KEEP_CLUSTER set.
    """
    users, guard = cache() / "users", cache() / "users.lock"
    started_here = users / "started"
    me = users / f"{os.getpid()}"
    with lock(guard):
        users.mkdir(exist_ok=True)
        if not _others(users):
            started_here.unlink(missing_ok=True)
            if not own.running():
                started_here.touch()
        me.write_text("\0".join(command_of(os.getpid())))
        own.start()
        if not _others(users, but=me):
            own.volumes.remove_released()
    try:
        yield own
    finally:
        with lock(guard):
            me.unlink(missing_ok=True)
            keep = os.environ.get("FINETUNE_KEEP_CLUSTER") or not started_here.exists()
            if not keep and not _others(users):
                own.stop()


def _others(users: Path, but: Path | None = None) -> bool:
    """Return whether test processes that still run use the cluster."""
    return any(
        file != but and "\0".join(command_of(int(file.name))) == file.read_text()
        for file in users.iterdir()
        if file.name.isdecimal()
    )


__all__ = ["ClusterError", "cluster", "namespace", "own_cluster"]
