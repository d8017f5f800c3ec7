"""What this machine must have to host a cluster, and what is installed when it lacks it."""

import os
import platform
import shutil
from pathlib import Path

from tests.cluster import cgroups
from tests.cluster.commands import ClusterError, run, works

PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "ip": "iproute2",
    "nft": "nftables",
    "conntrack": "conntrack",
    "buildah": "buildah",
    "openssl": "openssl",
    "debootstrap": "debootstrap",
    "nsenter": "util-linux",
    "sysctl": "procps",
}
POD_NETWORK = ("ptp", "containernetworking-plugins")
PLUGIN_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"), Path("/usr/libexec/cni"))
GIGABYTE = 10**9


def cache() -> Path:
    """Return the folder, outside the checkout, of what is built once."""
    given = os.environ.get("FINETUNE_TEST_CACHE")
    path = Path(given) if given else Path.home() / ".cache/finetune-operator/testcluster"
    path.mkdir(parents=True, exist_ok=True)
    return path


def why_not() -> str | None:
    """Return why this machine cannot host a cluster, or nothing."""
    if platform.system() != "Linux":
        return f"kubelets need Linux, this is {platform.system()}: set FINETUNE_TEST_KUBECONFIG"
    if os.geteuid() != 0:
        return "kubelets need root: run as root, or set FINETUNE_TEST_KUBECONFIG"
    if problem := cgroups.problem():
        return f"{problem}: run in a virtual machine, or set FINETUNE_TEST_KUBECONFIG"
    if not works("unshare", "--net", "--mount", "true"):
        return "this container may not make network namespaces: set FINETUNE_TEST_KUBECONFIG"
    if Path("/var/lib/kubelet/config.yaml").exists():
        return "this machine already is a node of a cluster: set FINETUNE_TEST_KUBECONFIG"
    if (missing := missing_packages()) and not shutil.which("apt-get"):
        return f"install {' '.join(missing)}, or set FINETUNE_TEST_KUBECONFIG"
    return None


def plugins_folder() -> Path:
    """Return where the programs lie that give pods their addresses."""
    known = [path for path in PLUGIN_FOLDERS if (path / POD_NETWORK[0]).exists()]
    return known[0] if known else PLUGIN_FOLDERS[0]


def missing_packages() -> list[str]:
    """Return the Debian packages of programs that are not here."""
    missing = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    if not (plugins_folder() / POD_NETWORK[0]).exists():
        missing.append(POD_NETWORK[1])
    return missing


def install_packages() -> None:
    """Install what is missing.

    Raises:
        ClusterError: It cannot be installed here.
    """
    missing = missing_packages()
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise ClusterError(f"install these packages: {' '.join(missing)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run("apt-get", "update", "-qq", environment=environment)
    run(
        "apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing,
        environment=environment,
    )  # fmt: skip


def require_disk(folder: Path, *, gigabytes: float, purpose: str) -> None:
    """Check that a folder's disk has room.

    Raises:
        ClusterError: It has less; with what it has and what is needed.
    """
    free = shutil.disk_usage(folder).free / GIGABYTE
    if free < gigabytes:
        raise ClusterError(
            f"{purpose} needs {gigabytes:.0f} GB, the disk of {folder} has {free:.1f} GB free: "
            f"remove something (`buildah rmi --prune` removes images without a name), "
            "or set FINETUNE_TEST_CACHE to a folder on a larger disk"
        )


def mounts_under(folder: Path) -> list[str]:
    """Return the mount points under a folder, deepest first."""
    points = [
        line.split()[1].encode().decode("unicode_escape")
        for line in Path("/proc/mounts").read_text().splitlines()
    ]
    return sorted((p for p in points if p.startswith(f"{folder}/")), key=len, reverse=True)


def unmount_under(folder: Path) -> None:
    """Unmount all that is mounted under a folder, so that it can be removed and nothing else with it.

    Raises:
        ClusterError: Something stays mounted.
    """
    points = mounts_under(folder)
    for start in range(0, len(points), 100):
        works("umount", "--lazy", *points[start : start + 100])
    if left := mounts_under(folder):
        raise ClusterError(f"cannot unmount {left[:3]}: unmount them by hand")
