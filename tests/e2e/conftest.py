"""Fixtures of tests with real pods: images on the nodes, an operator, a namespace with a model."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Access, Cluster
from tests.cluster.fixtures import fresh_namespace
from tests.e2e.images import bring_to
from tests.e2e.lab import Lab, apply_crds
from tests.e2e.operators import OperatorProcess, grant, settings, withdraw
from tests.e2e.relay import free_port
from tests.fakes.tiny import tiny_model

MODELS = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "models"},
    "spec": {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "1Gi"}},
    },
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests with pods the time they take."""
    for item in items:
        if "/e2e/" in str(item.fspath) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def with_crds(cluster: Access) -> Access:
    """Return the cluster with our kinds."""
    apply_crds(cluster)
    return cluster


@pytest.fixture(scope="session")
def with_images(with_crds: Access) -> Access:
    """Return the cluster with our kinds and our images."""
    bring_to(with_crds)
    return with_crds


@pytest.fixture(scope="session")
def home(with_crds: Access) -> Iterator[tuple[str, str]]:
    """Return the namespace of the operators under test, and the token of their account."""
    with fresh_namespace(with_crds) as name:
        yield name, grant(with_crds, name)
        withdraw(with_crds, name)


@pytest.fixture
def operator_process(
    own_cluster: Cluster, home: tuple[str, str], namespace: str, tmp_path: Path
) -> Iterator[OperatorProcess]:
    """Return an operator of one namespace that is not started yet; it ends with the test."""
    name, token = home
    certificate = str(own_cluster.pki.folder / "ca.crt")
    host = own_cluster.api_server.split("://")[1].split(":")[0]
    port = free_port(host)
    progress = {"url": f"https://{host}:{port}", "port": port}
    found = OperatorProcess(
        tmp_path / "operator",
        own_cluster.api_server,
        certificate,
        token,
        settings(name, progress=progress, namespaces=[namespace]),
    )
    yield found
    found.stop()
    print(found.log_text()[-6000:])


@pytest.fixture
def operator(operator_process: OperatorProcess) -> OperatorProcess:
    """Return an operator that leads."""
    operator_process.start()
    operator_process.wait_until_leading()
    return operator_process


@pytest.fixture
def lab(with_images: Access, namespace: str) -> Lab:
    """Return a namespace with the tiny model on the claim `models`, and validated rows to come."""
    return furnished(Lab(with_images, namespace))


def furnished(lab: Lab) -> Lab:
    """Put the tiny model on a claim of a namespace."""
    lab.apply(MODELS)
    lab.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "pvc/models", "--timeout=60s")
    model = tiny_model(lab.folder("models") / "model")
    for path in model.iterdir():
        path.chmod(0o644)
    return lab
