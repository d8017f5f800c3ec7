"""A real Kubernetes cluster on this machine."""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.cluster import machine, network, tools
from tests.cluster.access import Access
from tests.cluster.commands import ClusterError, lock, wait_until
from tests.cluster.control_plane import SERVER, ControlPlane
from tests.cluster.images import exists
from tests.cluster.node import Node
from tests.cluster.pki import Pki
from tests.cluster.processes import Processes
from tests.cluster.storage import Volumes

RUN_GIGABYTES = 3
UNFIT = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
# What a cluster has in its folder, its nodes aside.
MADE = ("etcd", "pki", "log", "processes", "volumes", "audit*", "Corefile", "settings")
SETTINGS = ("control_plane.py", "network.py", "node.py", "pki.py")


def default_state() -> Path:
    """Return the folder of the cluster that tests and people use."""
    return machine.cache() / "state"


class Cluster(Access):
    """The control plane, nodes and volumes in one folder; at most one runs on a machine."""

    def __init__(self, state: Path) -> None:
        self.state = state.absolute()
        self.pki = Pki(self.state / "pki")
        super().__init__(self.pki.folder / "admin.kubeconfig")
        self.processes = Processes(self.state)
        self.control_plane = ControlPlane(self.state, pki=self.pki, processes=self.processes)
        self.volumes = Volumes(self.state / "volumes", self)

    @property
    def api_server(self) -> str:
        """Return the API server's address, the same from this machine and from pods."""
        return SERVER

    @property
    def audit_log(self) -> Path:
        """Return the API server's audit log: one JSON object a line."""
        return self.control_plane.audit_log

    @property
    def nodes(self) -> list[str]:
        """Return the names of the nodes that were started and not stopped for good."""
        return [node.name for node in self._nodes() if node.running()]

    def running(self) -> bool:
        """Return whether the cluster is up, as this version of its settings has it."""
        return self.control_plane.started() and self._stamp() == self._settings()

    def start(self, nodes: int = 2) -> None:
        """Bring it up: what runs is used as it is, the rest is started, the remains of a dead one removed.

        Raises:
            ClusterError: This machine cannot host it, or a part did not come up; with its log.
        """
        if reason := machine.why_not():
            raise ClusterError(reason)
        if len(str(self.state)) > 60:
            raise ClusterError(
                f"{self.state} is too long for the names of sockets in it: 60 at most"
            )
        machine.install_packages()
        binaries, dns = tools.kubernetes(), tools.dns()
        with self._alone():
            if not self.running():
                self._remove_all()
                machine.require_disk(
                    self.state, gigabytes=RUN_GIGABYTES, purpose="the test cluster"
                )
            network.make_bridge(self.state)
            self.control_plane.start(binaries, dns)
            (self.state / "settings").write_text(self._settings())
            for number in range(nodes):
                self._node(number).start(binaries)
        self.wait_ready(*(self._node(number).name for number in range(nodes)))
        self.add_volumes()

    def stop(self) -> None:
        """End it and remove all it made but images, which the next one needs."""
        with self._alone():
            self._remove_all()

    def add_node(self, number: int) -> None:
        """Start a node that was not there, or was stopped, and wait until it is Ready."""
        if not 0 <= number < network.MOST_NODES:
            raise ClusterError(f"node {number}: the numbers go from 0 to {network.MOST_NODES - 1}")
        with self._alone():
            self._node(number).start(tools.kubernetes())
        self.wait_ready(self._node(number).name)
        self.add_volumes()

    def stop_node(self, number: int) -> None:
        """End a node's processes and containers at once, as a machine that loses its power."""
        self._node(number).kill()

    def restart_node(self, number: int) -> None:
        """Start a stopped node again, as a machine whose power is back."""
        self._node(number).kill()
        self.add_node(number)

    def remove_node(self, number: int) -> None:
        """End a node and remove all of it, from the API server too."""
        node = self._node(number)
        node.kill()
        self.kubectl("delete", "node", node.name, "--ignore-not-found")
        with self._alone():
            machine.unmount_under(node.folder)
            network.remove_namespace(number)
            node.forget(images=True)
            shutil.rmtree(node.folder)

    def stop_api_server(self) -> None:
        """End the API server at once."""
        self.processes.kill("api-server")

    def start_api_server(self) -> None:
        """Start the API server again and wait until it answers."""
        self.control_plane.start_api_server(tools.kubernetes())

    def load_image(self, name: str, nodes: Sequence[int] | None = None) -> None:
        """Bring an image from buildah's store to nodes, all unless told; not where it is already."""
        if not exists(name):
            raise ClusterError(f"no image {name} in buildah's store: build it first")
        for node in self._nodes():
            if node.running() if nodes is None else node.number in nodes:
                with lock(node.folder / "load.lock"):
                    node.load(name)

    def add_volumes(self) -> None:
        """Make volumes until as many are free as there should be."""
        with lock(self.state / "volumes.lock"):
            self.volumes.add(self.nodes)

    def volume_path(self, namespace: str, claim: str) -> Path:
        """Return the folder on this machine behind a bound claim."""
        return self.volumes.path(namespace, claim)

    def user(self, name: str, groups: tuple[str, ...] = ()) -> Path:
        """Return a kubeconfig for a user of groups; what they may do is up to roles."""
        return self.pki.kubeconfig(f"user-{name}", server=SERVER, user=name, groups=groups)

    def wait_ready(self, *names: str, seconds: float = 120) -> None:
        """Wait until nodes are Ready and take pods.

        Raises:
            ClusterError: They are not in time.
        """

        def ready() -> bool:
            taken = [n["metadata"]["name"] for n in self.get("nodes") if _ready(n)]
            return set(names) <= set(taken)

        log = self.processes.log(names[0].replace("node", "kubelet")) if names else None
        wait_until(ready, what=f"{', '.join(names)} Ready", seconds=seconds, log=log)

    def _node(self, number: int) -> Node:
        return Node(self.state, number, pki=self.pki, processes=self.processes)

    def _nodes(self) -> list[Node]:
        numbers = (path.name.removeprefix("node-") for path in self.state.glob("node-*"))
        return [self._node(number) for number in sorted(map(int, numbers))]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold this cluster's lock; refuse where another one runs, remove one that died."""
        with lock(self.state / "lock"):
            other = Cluster(network.owner() or self.state)
            if other.state != self.state:
                if other.control_plane.started():
                    raise ClusterError(
                        f"a test cluster runs already in {other.state}: "
                        f"use it, or end it with `python -m tests.cluster --state {other.state} down`"
                    )
                other._remove_all()
            yield

    def _remove_all(self) -> None:
        """End every process and remove every trace but images and this folder."""
        nodes = self._nodes()
        self.processes.kill(*self.processes.names())
        for node in nodes:
            node.kill()
        machine.unmount_under(self.state)
        network.remove_all()
        for node in nodes:
            node.forget()
        for entry in (found for pattern in MADE for found in self.state.glob(pattern)):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _stamp(self) -> str:
        file = self.state / "settings"
        return file.read_text() if file.exists() else ""

    def _settings(self) -> str:
        digest = hashlib.sha256(str(tools.kubernetes()).encode())
        for name in SETTINGS:
            digest.update((tools.HERE / name).read_bytes())
        return digest.hexdigest()


def _ready(node: dict[str, object]) -> bool:
    status, spec = node["status"], node["spec"]
    assert isinstance(status, dict)
    assert isinstance(spec, dict)
    conditions = {c["type"]: c["status"] for c in status.get("conditions", [])}
    lost = [taint for taint in spec.get("taints", []) if taint["key"] in UNFIT]
    return conditions.get("Ready") == "True" and not lost
