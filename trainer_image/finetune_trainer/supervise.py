"""The first process of a step: starts the workers, watches them, says what became of them.

torchrun exits 1 whatever a worker did, a killed worker says nothing, and a hung one never ends: so
the exit code and the termination message come from here.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

from finetune_api.contract import (
    JOB_FILE,
    LOG_FILE,
    LOG_TAIL_BYTES,
    PROGRESS_FILE,
    TERMINATION_FILE,
    ErrorReport,
    ExitCode,
    JobFile,
    Snapshot,
    Termination,
)
from finetune_api.lastword import encode
from finetune_trainer.files import write_whole
from finetune_trainer.sending import Sender
from finetune_trainer.signals import HEARTBEAT_FILE, STOP_FILE

POLL_SECONDS = 0.1
STACK_DUMP_SECONDS = 2.0


def of_this_attempt(
    file: JobFile, path: Path, *, attempt: int | None, divisor: int | None
) -> tuple[JobFile, Path]:
    """Return the job file of one attempt, and where it lies: on a cluster all attempts share one."""
    if attempt is None:
        return file, path
    file = file.model_copy(update={"attempt": attempt, "micro_batch_divisor": divisor or 1})
    path = Path(file.folders.step) / JOB_FILE
    write_whole(path, file.model_dump_json(by_alias=True, exclude_none=True))
    return file, path


class Supervisor:
    """Runs the workers of one step to their end."""

    def __init__(self, file: JobFile, job_file: Path) -> None:
        """Prepare the step's folder; nothing is started yet."""
        self._file = file
        self._folder = Path(file.folders.step)
        self._job_file = job_file
        self._sender: Sender | None = None
        self._stop_at: float | None = None
        self._stalled = False
        self._stop_was_requested = False
        self._memory_kills = _memory_kills()

    def run(self, *, stop_on_eof: bool) -> int:
        """Run the step; return the exit code that carries the class of its outcome."""
        signal.signal(signal.SIGTERM, lambda *_: self.stop())
        signal.signal(signal.SIGINT, lambda *_: self.stop())
        if stop_on_eof:
            threading.Thread(target=self._stop_with_parent, daemon=True).start()
        if self._file.receiver:
            self._sender = Sender(self._file.receiver, self._folder)
        with (self._folder / LOG_FILE).open("ab") as log:
            workers = self._start()
            copier = threading.Thread(target=_copy_output, args=(workers.stdout, log), daemon=True)
            copier.start()
            status = self._watch(workers)
            copier.join(timeout=5)
        if self._sender is not None:
            self._sender.close()
        termination = self._judge(status)
        write_whole(
            self._folder / TERMINATION_FILE,
            termination.model_dump_json(by_alias=True, exclude_none=True),
        )
        if self._file.folders.termination_log:
            Path(self._file.folders.termination_log).write_text(encode(termination))
        return termination.exit_code

    def stop(self) -> None:
        """Ask the workers to save and end; they have the grace period."""
        if self._stop_at is None:
            self._stop_at = time.monotonic()
            (self._folder / STOP_FILE).touch()

    def _stop_with_parent(self) -> None:
        # Nobody ever writes to this pipe: it ends when the process that started us does.
        while os.read(0, 1):
            pass
        self._stop_was_requested = True
        self.stop()

    def _start(self) -> subprocess.Popen[bytes]:
        worker = ["finetune_trainer", "worker", "--job-file", str(self._job_file)]
        command = [sys.executable, "-m", *worker]
        processes = self._file.processes
        if self._file.step == "train" and processes > 1:
            command = [
                sys.executable, "-m", "torch.distributed.run", "--nnodes=1",
                f"--nproc-per-node={processes}", "--rdzv-backend=c10d",
                "--rdzv-endpoint=127.0.0.1:0", "--max-restarts=0", "-m", *worker,
            ]  # fmt: skip
        return subprocess.Popen(
            command,
            # Workers read this pipe to learn of our death: nothing else would tell them.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment(),
            start_new_session=True,
        )

    def _environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        threads = max((os.cpu_count() or 1) // self._file.processes, 1)
        defaults = {
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "TRL_EXPERIMENTAL_SILENCE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        # transformers would report by itself; here the first process does (`sending.py`).
        environment["DISABLE_KUBEFLOW_INTEGRATION"] = "TRUE"
        for name, value in defaults.items():
            environment.setdefault(name, value)
        if self._file.devices == 0:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        job = self._file.job
        for variable in (job.workers.env or []) if job and job.workers else []:
            environment[variable.name] = variable.value
        return environment

    def _watch(self, workers: subprocess.Popen[bytes]) -> int:
        """Wait for the end; cut short what stalls or outlives its grace period."""
        started = time.time()
        while (status := workers.poll()) is None:
            time.sleep(POLL_SECONDS)
            if self._stop_at and time.monotonic() - self._stop_at > self._file.grace_period_seconds:
                os.killpg(workers.pid, signal.SIGKILL)
            elif (
                not self._stop_at
                and self._silent_seconds(started) > self._file.stall_timeout_seconds
            ):
                self._stalled = True
                os.killpg(workers.pid, signal.SIGUSR1)  # every rank dumps its stacks into the log
                time.sleep(STACK_DUMP_SECONDS)
                os.killpg(workers.pid, signal.SIGKILL)
        return status

    def _silent_seconds(self, started: float) -> float:
        heartbeat = self._folder / HEARTBEAT_FILE
        last = heartbeat.stat().st_mtime if heartbeat.exists() else started
        return time.time() - last

    def _judge(self, status: int) -> Termination:
        """Return the outcome the workers left, or what their end tells."""
        outcome = self._outcome()
        snapshot = self._snapshot()
        if self._stalled:
            seconds = self._file.stall_timeout_seconds
            outcome = _failed(
                ExitCode.STALLED,
                f"no progress for {seconds} seconds (`spec.failurePolicy.stallTimeoutSeconds`); the"
                " stacks of all processes are in the log: raise it if a step takes that long",
            )
        elif outcome is None and self._stop_at is not None:
            outcome = _failed(
                ExitCode.EVICTED,
                "told to stop, and the grace period ended before a checkpoint was saved; raise"
                " `spec.workers.terminationGracePeriodSeconds`",
            )
        elif outcome is None:
            outcome = self._judge_silent_end(status)
        if outcome.error is not None:
            error = outcome.error.model_copy(update={"log_tail": self._log_tail()})
            outcome = outcome.model_copy(update={"error": error})
        requested = self._stop_was_requested and outcome.exit_code == ExitCode.EVICTED
        return outcome.model_copy(update={"snapshot": snapshot, "stop_was_requested": requested})

    def _judge_silent_end(self, status: int) -> Termination:
        if (
            status in (-signal.SIGKILL, 128 + signal.SIGKILL)
            and _memory_kills() > self._memory_kills
        ):
            return _failed(
                ExitCode.OUT_OF_MEMORY,
                "the kernel ended a process because memory ran out; lower"
                " `training.perDeviceBatchSize` or give the job more memory",
            )
        if status < 0:
            name = signal.Signals(-status).name
            return _failed(
                ExitCode.INFRASTRUCTURE,
                f"a process was ended from outside ({name}); look at the node's own log for by whom",
            )
        return _failed(
            ExitCode.INFRASTRUCTURE,
            f"a process ended with status {status} without a word; its last lines are in the log",
        )

    def _outcome(self) -> Termination | None:
        """Return the first failure, or rank 0's success."""
        paths = sorted(
            self._folder.glob("outcome-rank*.json"), key=lambda path: path.stat().st_mtime
        )
        outcomes = [Termination.model_validate_json(path.read_text()) for path in paths]
        failed = [outcome for outcome in outcomes if outcome.exit_code]
        # When one rank dies the others lose their connection: that is a consequence, not the cause.
        causes = [o for o in failed if o.exit_code != ExitCode.INFRASTRUCTURE]
        return next(iter([*causes, *failed, *outcomes]), None)

    def _snapshot(self) -> Snapshot | None:
        path = self._folder / PROGRESS_FILE
        if not path.exists():
            return None
        found = Snapshot.model_validate_json(path.read_text())
        if self._sender is None:
            return found
        return self._sender.numbered(found, told_at=found.progress.last_report_time)

    def _log_tail(self) -> str:
        with (self._folder / LOG_FILE).open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(log.tell() - LOG_TAIL_BYTES, 0))
            return log.read().decode(errors="replace")[-LOG_TAIL_BYTES:]


def _failed(code: ExitCode, message: str) -> Termination:
    return Termination(exit_code=code, error=ErrorReport(message=message))


def _copy_output(source: BinaryIO | Any, log: BinaryIO) -> None:
    for line in iter(source.readline, b""):
        log.write(line)
        log.flush()
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


def _memory_kills() -> int:
    """Return how often the kernel ended a process of our cgroup for memory (v2, or v1)."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        try:
            lines = Path(path).read_text().splitlines()
        except OSError:
            continue
        counts = dict(line.split() for line in lines if len(line.split()) == 2)
        return int(counts.get("oom_kill", "0"))
    return 0
