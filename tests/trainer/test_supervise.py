"""The first process of a step: it stops by SIGTERM with a checkpoint, and names what it cannot see."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune_api.contract import ExitCode, Folders, JobFile, Termination
from finetune_trainer.supervise import Supervisor
from tests.builders import a_dataset, a_job
from tests.conftest import Place

WAIT_SECONDS = 90


def a_file(folder: Path) -> JobFile:
    (folder / "log.txt").write_bytes(b"one\ntwo\n")
    return JobFile(
        step="prepare", namespace="d", name="n", uid="u", folders=Folders(step=str(folder))
    )


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (-signal.SIGKILL, ExitCode.INFRASTRUCTURE, "ended from outside (SIGKILL)"),
        (-signal.SIGSEGV, ExitCode.INFRASTRUCTURE, "SIGSEGV"),
        (1, ExitCode.INFRASTRUCTURE, "ended with status 1 without a word"),
    ],
)
def test_a_silent_end_is_named(tmp_path: Path, status: int, code: ExitCode, words: str) -> None:
    end = Supervisor(a_file(tmp_path), tmp_path / "job.json")._judge(status)
    assert end.exit_code == code
    assert end.error is not None
    assert words in end.error.message
    assert end.error.log_tail == "one\ntwo\n"


def test_memory_kills_are_told_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = Supervisor(a_file(tmp_path), tmp_path / "job.json")
    monkeypatch.setattr(
        "finetune_trainer.supervise._memory_kills", lambda: supervisor._memory_kills + 1
    )
    end = supervisor._judge(-signal.SIGKILL)
    assert end.exit_code == ExitCode.OUT_OF_MEMORY


def test_a_crash_after_the_work_is_no_failure(tmp_path: Path) -> None:
    supervisor = Supervisor(a_file(tmp_path), tmp_path / "job.json")
    done = Termination(exit_code=0)
    (tmp_path / "outcome-rank0.json").write_text(done.model_dump_json(by_alias=True))
    assert supervisor._judge(-signal.SIGABRT).exit_code == 0


def test_the_cause_comes_before_its_consequence(tmp_path: Path) -> None:
    supervisor = Supervisor(a_file(tmp_path), tmp_path / "job.json")
    for rank, code in ((1, ExitCode.INFRASTRUCTURE), (0, ExitCode.USER_ERROR)):
        outcome = Termination.model_validate(
            {"exit_code": code, "error": {"message": f"rank {rank}"}}
        )
        (tmp_path / f"outcome-rank{rank}.json").write_text(outcome.model_dump_json(by_alias=True))
    assert supervisor._judge(1).exit_code == ExitCode.USER_ERROR


def test_sigterm_saves_and_exits_evicted(place: Place) -> None:
    """The same signal a kubelet sends to the first process of a pod; here without any stand-in."""
    manifest = place.write(a_dataset(), a_job(training={"maxSteps": 100_000}))
    driver = subprocess.Popen(
        place.command("run", str(manifest)), cwd=place.folder, env=place.environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < until and not (
        jobs := list(place.state.glob("steps/*-train-1/job.json"))
    ):
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    file = JobFile.model_validate_json(jobs[0].read_text())
    step = place.folder / "alone"
    step.mkdir()
    folders = file.folders.model_copy(update={"step": str(step)})
    job_file = step / "job.json"
    job_file.write_text(
        file.model_copy(update={"folders": folders, "attempt": 2}).model_dump_json(by_alias=True)
    )
    first = subprocess.Popen(
        [sys.executable, "-m", "finetune_trainer", "run", "--job-file", str(job_file)],
        env=place.environment(), stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < until and first.poll() is None:
        report = step / "progress.json"
        if report.exists() and json.loads(report.read_text())["progress"]["step"] >= 3:
            break
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert first.wait(WAIT_SECONDS) == ExitCode.EVICTED
    end = Termination.model_validate_json((step / "termination.json").read_text())
    assert not end.stop_was_requested
    assert end.snapshot is not None
    assert end.snapshot.checkpoints.latest is not None
    saved = end.snapshot.checkpoints.latest
    folder = Path(file.folders.work) / "run-1" / saved.uri
    assert json.loads((folder / "manifest.json").read_text())["step"] == saved.step >= 3
