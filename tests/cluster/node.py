"""One node: containerd, kubelet and kube-proxy in a network namespace, with a control group of its own."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from tests.cluster import cgroups, network
from tests.cluster.commands import run, wait_until, works
from tests.cluster.control_plane import SERVER
from tests.cluster.images import IMPORT, PAUSE, image_id, pause_image
from tests.cluster.machine import plugins_folder
from tests.cluster.pki import Pki
from tests.cluster.processes import Processes, all_ids, children, command_of, end

CONTAINERD = """version = 2
root = "{folder}/containerd"
state = "{folder}/run"
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Where root may not lower a process's out-of-memory score, runc dies without this.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{folder}/cni"
"""
KUBELET = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "authorization": {"mode": "Webhook"},
    "cgroupDriver": "cgroupfs",
    "failCgroupV1": False,
    "failSwapOn": False,
    "enforceNodeAllocatable": [],
    "makeIPTablesUtilChains": False,
    "clusterDNS": [network.HOST],
    "clusterDomain": "cluster.local",
    "maxPods": 110,
    # Signs of life well within the time after which a node counts as lost.
    "nodeStatusUpdateFrequency": "2s",
    "nodeLeaseDurationSeconds": 8,
    "evictionHard": {
        "memory.available": "100Mi",
        "nodefs.available": "1%",
        "imagefs.available": "1%",
    },
    "imageGCHighThresholdPercent": 100,
    "kubeAPIQPS": 200,
    "kubeAPIBurst": 400,
}
PACKED_LAYERS = 'labels."containerd.io/uncompressed"'


class Node:
    """A node of the cluster by its number."""

    def __init__(self, state: Path, number: int, *, pki: Pki, processes: Processes) -> None:
        self.number, self.pki, self.processes = number, pki, processes
        self.name = f"node-{number}"
        self.folder = state / self.name
        self.socket = self.folder / "containerd.sock"
        self.cgroup = f"finetune-{hashlib.sha256(str(state).encode()).hexdigest()[:6]}-{self.name}"
        self.parts = [f"{part}-{number}" for part in ("kubelet", "proxy", "containerd")]

    def running(self) -> bool:
        """Return whether all of its processes run."""
        return all(self.processes.running(part) for part in self.parts)

    def start(self, binaries: Path) -> None:
        """Start what does not run."""
        fresh = not (self.folder / "kubelet").exists()
        network.make_namespace(self.number)
        cgroups.make(self.cgroup)
        (self.folder / "cni").mkdir(parents=True, exist_ok=True)
        self._write_settings()
        self._start_containerd()
        if fresh and (left := self._ctr("containers", "list", "-q").split()):
            self._ctr("containers", "delete", *left)
            self.processes.kill(f"containerd-{self.number}")
            self._start_containerd()
        if (
            PAUSE not in self._images()
        ):  # buildah waits while it builds another image: ask it rarely
            self.load(pause_image())
        inside = network.namespace(self.number)
        self.processes.start(f"kubelet-{self.number}", self._kubelet(binaries), network=inside)
        self.processes.start(
            f"proxy-{self.number}",
            [binaries / "kube-proxy", f"--config={self.folder / 'proxy.json'}"],
            network=inside,
        )

    def kill(self) -> None:
        """End it with all its containers at once, as a machine that loses its power."""
        self.processes.kill(*self.parts)
        shims = [pid for pid in all_ids() if self._is_shim(command_of(pid))]
        end([*shims, *children(shims)])
        cgroups.kill(self.cgroup)
        self.socket.unlink(missing_ok=True)

    def forget(self, *, images: bool = False) -> None:
        """Remove what a stopped one leaves; its images only if told."""
        cgroups.remove(self.cgroup)
        for entry in self.folder.iterdir() if self.folder.exists() else ():
            if entry.is_dir() and (images or entry.name != "containerd"):
                shutil.rmtree(entry, ignore_errors=True)

    def load(self, name: str) -> None:
        """Import an image from buildah's store through a pipe, unless that very one is there."""
        wanted, record = image_id(name), self.folder / "containerd" / "finetune-images.json"
        loaded = json.loads(record.read_text()) if record.exists() else {}
        if loaded.get(name) == wanted and name in self._images():
            return
        run("bash", "-c", IMPORT, "import", name, self.socket)
        record.write_text(json.dumps({**loaded, name: wanted}))
        # What was unpacked is not read again, and would take the same space once more.
        if packed := self._ctr("content", "list", "-q", PACKED_LAYERS).split():
            self._ctr("content", "delete", *packed)

    def _images(self) -> list[str]:
        return self._ctr("images", "list", "-q").split()

    def _ctr(self, *words: str) -> str:
        return run("ctr", "--address", self.socket, "--namespace", "k8s.io", *words)

    def _is_shim(self, command: list[str]) -> bool:
        return bool(command) and "containerd-shim" in command[0] and str(self.socket) in command

    def _start_containerd(self) -> None:
        name = f"containerd-{self.number}"
        command = ["containerd", "--config", str(self.folder / "containerd.toml")]
        self.processes.start(name, command, network=network.namespace(self.number))
        wait_until(
            lambda: works("ctr", "--address", self.socket, "version"),
            what=f"containerd of {self.name} answers", log=self.processes.log(name),
        )  # fmt: skip

    def _kubelet(self, binaries: Path) -> list[str | Path]:
        return [
            binaries / "kubelet", f"--config={self.folder / 'kubelet.json'}",
            f"--kubeconfig={self._kubeconfig()}", f"--hostname-override={self.name}",
            f"--node-ip={network.address(self.number)}", f"--root-dir={self.folder / 'kubelet'}",
        ]  # fmt: skip

    def _kubeconfig(self) -> Path:
        user = f"system:node:{self.name}"
        return self.pki.kubeconfig(self.name, server=SERVER, user=user, groups=("system:nodes",))

    def _write_settings(self) -> None:
        kind = run("stat", "--file-system", "--format=%T", self.folder).strip()
        settings = CONTAINERD.format(
            folder=self.folder, pause=PAUSE, plugins=plugins_folder(),
            snapshotter="native" if kind == "overlayfs" else "overlayfs",
        )  # fmt: skip
        (self.folder / "containerd.toml").write_text(settings)
        for file, content in {
            "cni/10-pods.conflist": self._pod_network(),
            "kubelet.json": self._kubelet_settings(),
            "proxy.json": self._proxy_settings(),
        }.items():
            (self.folder / file).write_text(json.dumps(content, indent=1))

    def _pod_network(self) -> dict[str, Any]:
        addresses = {
            "type": "host-local",
            "dataDir": str(self.folder / "addresses"),
            "ranges": [[{"subnet": network.pod_range(self.number)}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        # Not a bridge: a service's reply between two pods of one bridge would miss the node's translation.
        return {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [{"type": "ptp", "ipam": addresses}],
        }

    def _kubelet_settings(self) -> dict[str, Any]:
        address = network.address(self.number)
        certificate, key = self.pki.issue(
            f"kubelet-{self.number}", user=self.name, names=f"DNS:{self.name},IP:{address}"
        )
        return {
            **KUBELET,
            "address": address,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self.pki.authority)},
            },
            "tlsCertFile": str(certificate),
            "tlsPrivateKeyFile": str(key),
            "containerRuntimeEndpoint": f"unix://{self.socket}",
            "cgroupRoot": f"/{self.cgroup}",
            # Shared, one kubelet deletes the logs of the other's pods.
            "podLogsDir": str(self.folder / "pod-logs"),
        }

    def _proxy_settings(self) -> dict[str, Any]:
        kubeconfig = self.pki.kubeconfig("proxy", server=SERVER, user="system:kube-proxy")
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            "mode": "nftables",
            "nftables": {"minSyncPeriod": "100ms"},
            "clusterCIDR": network.PODS,
            "hostnameOverride": self.name,
            "conntrack": {"maxPerCore": 0},
        }
