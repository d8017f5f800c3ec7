"""Step runs as processes: each has a folder; a lock held by the process tells that it lives."""

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from finetune_api.contract import (
    JOB_FILE,
    LOG_FILE,
    PROGRESS_FILE,
    TERMINATION_FILE,
    Folders,
    Snapshot,
    Termination,
)
from finetune_operator.local.store import write_whole
from finetune_operator.plan import Key, ObservedRun, StepRun

OWNER_FILE = "owner.json"
LOCK_FILE = "lock"


def trainer_python() -> str:
    """Return the Python that has the trainer; `FINETUNE_TRAINER_PYTHON` where it is not this one."""
    return os.environ.get("FINETUNE_TRAINER_PYTHON", sys.executable)


class Processes:
    """The step runs of one state folder."""

    def __init__(self, root: Path) -> None:
        """Find runs that an earlier process started; start none."""
        self._root = root
        self._steps = root / "steps"
        self._pipes: dict[str, IO[bytes]] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def folder(self, name: str) -> Path:
        """Return the folder of a run."""
        return self._steps / name

    def create(self, run: StepRun, owner_uid: str) -> None:
        """Make a run's folder, and start it if that never happened."""
        folder = self.folder(run.name)
        if not (folder / JOB_FILE).exists():
            folders = Folders(
                step=str(folder),
                cache=str(self._root / "cache"),
                work=str(self.work_folder(owner_uid)),
                claims=str(self._root / "claims"),
                secrets=str(self._root / "secrets"),
                base=run.base,
            )
            file = run.job_file.model_copy(update={"folders": folders})
            owner = {
                "kind": run.owner.kind,
                "namespace": run.owner.namespace,
                "name": run.owner.name,
                "uid": owner_uid,
                "run": file.run,
                "step": file.step,
                "created": time.time(),
            }
            write_whole(folder / OWNER_FILE, json.dumps(owner))
            write_whole(folder / JOB_FILE, file.model_dump_json(by_alias=True, exclude_none=True))
        if not (folder / LOG_FILE).exists():
            self._start(run.name)

    def work_folder(self, uid: str) -> Path:
        """Return the folder of an object's checkpoints."""
        return self._root / "work" / uid

    def _start(self, name: str) -> None:
        """Start a run's process; it holds the lock from before its first instruction."""
        folder = self.folder(name)
        with (folder / LOCK_FILE).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            child = subprocess.Popen(
                [trainer_python(), "-m", "finetune_trainer", "run", "--stop-on-eof",
                 "--job-file", str(folder / JOB_FILE)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=(folder / "supervisor.txt").open("ab"),
                pass_fds=(lock.fileno(),),
                start_new_session=True,
            )  # fmt: skip
        assert child.stdin is not None
        self._pipes[name], self._children[name] = child.stdin, child

    def observe(self, owner: Key) -> dict[str, ObservedRun]:
        """Return the runs of an object."""
        found = {}
        for folder in sorted(self._steps.glob("*")):
            try:
                of = json.loads((folder / OWNER_FILE).read_text(encoding="utf-8"))
            except FileNotFoundError:
                continue
            if (of["kind"], of["namespace"], of["name"]) == tuple(owner):
                run = self._observed(folder, of)
                if run is not None:
                    found[run.name] = run
        return found

    def _observed(self, folder: Path, of: dict[str, Any]) -> ObservedRun | None:
        """Return a run's state; None for one that was never started."""
        if not (folder / JOB_FILE).exists():
            return None
        if child := self._children.get(folder.name):
            child.poll()
        alive = self.is_alive(folder.name)
        end = folder / TERMINATION_FILE
        if not alive and not end.exists() and not (folder / LOG_FILE).exists():
            return None
        termination = None
        if not alive and end.exists():
            termination = Termination.model_validate_json(end.read_text(encoding="utf-8"))
        ended_at = None
        if not alive:
            last = end if end.exists() else folder / LOG_FILE
            ended_at = last.stat().st_mtime
        return ObservedRun(
            name=folder.name,
            run=of["run"],
            step=of["step"],
            is_running=alive,
            started_at=of["created"],
            ended_at=ended_at,
            termination=termination,
            snapshot=self.snapshot(folder.name),
        )

    def snapshot(self, name: str) -> Snapshot | None:
        """Return a run's newest report."""
        path = self.folder(name) / PROGRESS_FILE
        try:
            return Snapshot.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def is_alive(self, name: str) -> bool:
        """Tell whether a run's process holds its lock."""
        path = self.folder(name) / LOCK_FILE
        if not path.exists():
            return False
        with path.open("r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def stop(self, name: str) -> None:
        """Let a run save and end: the end of its input is the sign."""
        pipe = self._pipes.pop(name, None)
        if pipe is not None:
            pipe.close()

    def stop_all(self) -> None:
        """Let all runs save and end."""
        for name in list(self._pipes):
            self.stop(name)

    def kill_all(self) -> None:
        """End all runs at once, unsaved."""
        for child in self._children.values():
            if child.poll() is None:
                child.kill()

    def running(self) -> list[str]:
        """Return the runs whose process lives."""
        return [folder.name for folder in self._steps.glob("*") if self.is_alive(folder.name)]

    def is_training(self, *, besides: str) -> bool:
        """Tell whether another run at training lives."""
        return any("-train-" in name for name in self.running() if name != besides)

    def stamp(self) -> tuple[object, ...]:
        """Return what changes whenever a run begins, reports or ends."""
        names = (JOB_FILE, PROGRESS_FILE, TERMINATION_FILE)
        times = [
            (str(path), path.stat().st_mtime_ns)
            for folder in self._steps.glob("*")
            for name in names
            if (path := folder / name).exists()
        ]
        return (*sorted(times), *sorted(self.running()))

    def owner_of(self, name: str) -> Key | None:
        """Return the object that a run belongs to."""
        try:
            of = json.loads((self.folder(name) / OWNER_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return Key(of["kind"], of["namespace"], of["name"])
