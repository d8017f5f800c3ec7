"""The control groups of one node: a kubelet needs a tree of its own, and a lost node ends all in it."""

import contextlib
from pathlib import Path

from tests.cluster.commands import ClusterError
from tests.cluster.processes import end

ROOT = Path("/sys/fs/cgroup")
HIERARCHIES = (
    "cpu", "cpuacct", "cpu,cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids",
    "hugetlb", "systemd",
)  # fmt: skip
UNIFIED = ("cpuset", "cpu", "io", "memory", "pids", "hugetlb")


def problem() -> str | None:
    """Return why containers cannot have control groups here, or nothing."""
    if is_unified():
        controllers = (ROOT / "cgroup.controllers").read_text().split()
        missing = {"cpu", "memory", "pids"} - set(controllers)
    else:
        missing = {name for name in ("cpu", "memory", "pids") if not (ROOT / name).is_dir()}
    if missing:
        return f"control groups for {', '.join(sorted(missing))} are not mounted under {ROOT}"
    return None


def is_unified() -> bool:
    """Return whether this machine has version 2."""
    return (ROOT / "cgroup.controllers").exists()


def _folders(name: str) -> list[Path]:
    roots = [ROOT] if is_unified() else [ROOT / hierarchy for hierarchy in HIERARCHIES]
    return [root / name for root in roots if root.is_dir() and not root.is_symlink()]


def make(name: str) -> None:
    """Make a tree in every hierarchy."""
    for folder in _folders(name):
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise ClusterError(f"cannot make the control group {folder}: {error}") from error
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if (folder / setting).exists() and not is_unified():
                (folder / setting).write_text((folder.parent / setting).read_text())
    if is_unified():
        for controller in UNIFIED:
            for parent in (ROOT, ROOT / name):
                with contextlib.suppress(OSError):  # not there, or not ours to hand on
                    (parent / "cgroup.subtree_control").write_text(f"+{controller}")


def members(name: str) -> list[int]:
    """Return the ids of all processes in a tree."""
    found: set[int] = set()
    for folder in _folders(name):
        for file in folder.rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                found.update(int(word) for word in file.read_text().split())
    return sorted(found)


def kill(name: str) -> None:
    """End every process in a tree, those included that are born meanwhile."""
    for _ in range(20):
        if not (pids := members(name)):
            return
        end(pids)


def remove(name: str) -> None:
    """Remove an empty tree."""
    for folder in _folders(name):
        if folder.is_dir():
            inner = [path for path in folder.rglob("*") if path.is_dir()]
            for path in [*sorted(inner, key=lambda p: len(p.parts), reverse=True), folder]:
                with contextlib.suppress(OSError):
                    path.rmdir()
