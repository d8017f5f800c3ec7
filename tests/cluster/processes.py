"""Processes in the background that outlive the one that started them, known by their ids."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.commands import wait_until

ENVIRONMENT = {"GOGC": "400"}
"""With a heap as small as that of a test cluster Go would collect all the time: a sixth of the API server."""


def command_of(pid: int) -> list[str]:
    """Return the command line of a process; of one that ended, nothing."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [word.decode(errors="replace") for word in raw.split(b"\0")[:-1]]


def all_ids() -> list[int]:
    """Return the id of every process."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def children(parents: Sequence[int]) -> list[int]:
    """Return the ids of the processes that were started by others."""
    found = []
    for pid in all_ids():
        try:
            parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        except (OSError, IndexError):
            continue
        found += [pid] if int(parent) in parents else []
    return found


def reap(pid: int) -> bool:
    """Bury a process if it is a child of this one and has ended; return whether it was."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False


def end(pids: Sequence[int]) -> None:
    """Kill processes and wait until they are gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in pids:
        until = time.monotonic() + 10
        while command_of(pid) and time.monotonic() < until:
            time.sleep(0.01)
        reap(pid)


class Processes:
    """The processes of one cluster, each with a name, a log and a record of its id."""

    def __init__(self, state: Path) -> None:
        self.records, self.logs = state / "processes", state / "log"

    def start(
        self, name: str, command: Sequence[str | Path], *, network: Path | None = None
    ) -> None:
        """Start a process unless it runs; in a network namespace if one is named."""
        if self.running(name):
            return
        self.records.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        words = [str(word) for word in command]
        # Not `ip netns exec`: that one remounts /sys, and a kubelet then finds no cgroups.
        entry = ["nsenter", f"--net={network}"] if network else []
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        pid = os.posix_spawnp(
            (entry + words)[0],
            entry + words,
            {**os.environ, **ENVIRONMENT},
            setsid=True,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self.log(name)), flags, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
        )
        record = self.records / f"{name}.json"
        record.write_text(json.dumps({"pid": pid, "command": words}))
        wait_until(  # for a moment it is nsenter, or has no command line at all
            lambda: command_of(pid) == words or reap(pid),
            what=f"{name} is {words[0]}", log=self.log(name),
        )  # fmt: skip

    def log(self, name: str) -> Path:
        """Return the file with what a process printed."""
        return self.logs / f"{name}.log"

    def pid(self, name: str) -> int | None:
        """Return the id of a process that runs and still is the program that was started."""
        try:
            record = json.loads((self.records / f"{name}.json").read_text())
        except (OSError, ValueError):
            return None
        reap(record["pid"])
        return record["pid"] if command_of(record["pid"]) == record["command"] else None

    def running(self, name: str) -> bool:
        """Return whether a process runs."""
        return self.pid(name) is not None

    def names(self) -> list[str]:
        """Return the names of all that were started."""
        return sorted(file.stem for file in self.records.glob("*.json"))

    def kill(self, *names: str) -> None:
        """Kill processes and forget them."""
        end([pid for name in names if (pid := self.pid(name))])
        for name in names:
            (self.records / f"{name}.json").unlink(missing_ok=True)
