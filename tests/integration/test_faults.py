"""Faults: whatever is killed, cut or filled, the job ends as if nothing had happened, bit for bit."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.builders import a_dataset, a_job
from tests.conftest import Place, make_place

HOOK = Path(__file__).parents[1] / "fakes" / "faults.py"
SITE = Path(__file__).parents[1] / "fakes" / "site"
POLICY = {"maxRestarts": 60}
WAIT_SECONDS = 60
LEAST_WRITES, MOST_WRITES = 12, 40


@dataclass(frozen=True)
class Result:
    """What a run leaves: the adapter's bytes and the loss of each step."""

    adapter: bytes
    losses: list[tuple[int, float]]


def result_of(place: Place, run: int = 1) -> Result:
    folder = place.output(run=run)
    lines = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text().splitlines()]
    return Result(
        adapter=(folder / "adapter_model.safetensors").read_bytes(),
        losses=[(line["current_steps"], line["loss"]) for line in lines if "loss" in line],
    )


def status_of(place: Place) -> dict[str, Any]:
    shown = place.finetune("get", "ftj", "tiny", "-o", "json")
    assert shown.returncode == 0, shown.stderr
    status: dict[str, Any] = json.loads(shown.stdout)["status"]
    return status


@pytest.fixture(scope="module")
def unbroken(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, warm_python: str
) -> Result:
    place = make_place(tmp_path_factory.mktemp("unbroken"), model_folder, warm_python)
    manifest = place.write(a_dataset(), a_job(failurePolicy=POLICY))
    ran = place.finetune("run", str(manifest))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = result_of(place)
    assert [step for step, _ in found.losses] == [1, 2, 3, 4, 5, 6]
    return found


def run_with_fault(place: Place, fault: str) -> dict[str, Any]:
    manifest = place.write(a_dataset(), a_job(failurePolicy=POLICY))
    ran = place.finetune(
        "run", str(manifest), FINETUNE_TEST_HOOK=str(HOOK), FINETUNE_TEST_FAULT=fault
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return status_of(place)


@pytest.mark.parametrize(
    ("fault", "reason", "resumed_from"),
    [
        ("kill:3", "Infrastructure", 2),
        ("term:3", "Infrastructure", 4),
        ("truncate:4", "Infrastructure", 2),
        ("full-file:4", "Infrastructure", 2),
    ],
)
def test_a_broken_attempt_is_made_good(
    place: Place, unbroken: Result, fault: str, reason: str, resumed_from: int
) -> None:
    status = run_with_fault(place, fault)
    first, second = [attempt for attempt in status["attempts"] if attempt["step"] == "train"]
    assert first["reason"] == reason
    assert second["reason"] == "Completed"
    assert second["resumedFromStep"] == resumed_from
    assert result_of(place) == unbroken


def test_killed_between_the_last_checkpoint_and_the_result(place: Place, tmp_path: Path) -> None:
    # In the middle of an epoch: what resumes there must not train another step.
    steps = {"training": {"maxSteps": 5}, "checkpoint": {"everySteps": 5}}
    manifest = place.write(a_dataset(), a_job(failurePolicy=POLICY, **steps))
    assert place.finetune("run", str(manifest)).returncode == 0
    whole = result_of(place)
    again = a_job(failurePolicy=POLICY, rerun=1, **steps)
    broken = place.finetune(
        "run",
        str(place.write(a_dataset(), again)),
        FINETUNE_TEST_HOOK=str(HOOK),
        FINETUNE_TEST_FAULT="kill-after-save:5",
    )
    assert broken.returncode == 0, broken.stdout + broken.stderr
    attempts = [a for a in status_of(place)["attempts"] if a["step"] == "train"]
    assert [a["reason"] for a in attempts] == ["Infrastructure", "Completed"]
    assert attempts[-1]["resumedFromStep"] == 5
    assert result_of(place, run=2) == whole


def test_a_full_disk_is_made_good(place: Place, unbroken: Result) -> None:
    if os.getuid() != 0:
        pytest.skip("a small file system can be mounted by root only")
    work = place.state / "work"
    work.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(work)], check=True)
    try:
        # The ballast lies in the job's own folder of the small file system.
        status = run_with_fault(place, "fill-disk:4")
    finally:
        subprocess.run(["umount", str(work)], check=True)
    first = next(attempt for attempt in status["attempts"] if attempt["step"] == "train")
    assert first["reason"] == "Infrastructure"
    assert result_of(place) == unbroken


@pytest.mark.parametrize("fault", ["die-in-save", "die-in-publish"])
def test_killed_at_every_file_boundary(place: Place, unbroken: Result, fault: str) -> None:
    status = run_with_fault(place, fault)
    boundaries = [int(p.read_text()) for p in place.state.glob("steps/*/boundaries")]
    last = max(attempt["number"] for attempt in status["attempts"] if attempt["step"] == "train")
    # Attempt n died at boundary n, so all boundaries before the last attempt were deadly once.
    assert last >= 10
    assert max(boundaries) >= last - 1
    assert result_of(place) == unbroken


def count_writes(place: Place) -> int:
    manifest = place.write(a_dataset(), a_job(failurePolicy=POLICY))
    counter = place.folder / "writes"
    ran = place.finetune(
        "run", str(manifest), PYTHONPATH=str(SITE), FINETUNE_TEST_WRITE_COUNT=str(counter)
    )
    assert ran.returncode == 0, ran.stderr
    return int(counter.read_text())


@pytest.fixture(scope="module")
def writes(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, warm_python: str) -> int:
    return count_writes(make_place(tmp_path_factory.mktemp("count"), model_folder, warm_python))


@pytest.mark.parametrize("number", range(1, MOST_WRITES + 1))
def test_the_command_killed_at_a_write(
    place: Place, unbroken: Result, writes: int, number: int
) -> None:
    assert LEAST_WRITES <= writes <= MOST_WRITES, "the numbers must cover every write"
    if number > writes:
        pytest.skip(f"a run makes {writes} writes here; the slower, the more")
    manifest = place.write(a_dataset(), a_job(failurePolicy=POLICY))
    killed = place.finetune(
        "run", str(manifest), PYTHONPATH=str(SITE), FINETUNE_TEST_KILL_AT_WRITE=str(number)
    )
    assert killed.returncode in (-signal.SIGKILL, 0)
    assert number > LEAST_WRITES or killed.returncode == -signal.SIGKILL
    again = place.finetune("run", str(manifest))
    assert again.returncode == 0, again.stdout + again.stderr
    assert result_of(place) == unbroken
    assert place.finetune("get").returncode == 0


@pytest.fixture
def slow_run(place: Place) -> Iterator[subprocess.Popen[str]]:
    """Return a run under way whose steps take two seconds."""
    manifest = place.write(a_dataset(), a_job(failurePolicy=POLICY))
    environment = place.environment(FINETUNE_TEST_HOOK=str(HOOK), FINETUNE_TEST_FAULT="slow:2")
    process = subprocess.Popen(
        place.command("run", str(manifest)), cwd=place.folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    until = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < until and process.poll() is None:
        reports = list(place.state.glob("steps/*-train-1/progress.json"))
        if reports and json.loads(reports[0].read_text())["progress"]["step"] >= 2:
            break
        time.sleep(0.05)
    yield process
    process.kill()
    if process.stdout is not None and not process.stdout.closed:
        process.communicate()


def test_suspend_and_resume(
    place: Place, unbroken: Result, slow_run: subprocess.Popen[str]
) -> None:
    manifest = str(place.folder / "job.yaml")
    asked = place.finetune("run", manifest, "--set", "spec.suspend=true")
    assert asked.returncode == 0, asked.stdout + asked.stderr
    slow_run.wait(WAIT_SECONDS)
    status = status_of(place)
    assert status["phase"] == "Suspended"
    assert not place.output().exists()
    still = place.finetune("run", manifest, "--set", "spec.suspend=true")
    assert "Suspended" in still.stdout
    resumed = place.finetune("run", manifest)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    status = status_of(place)
    assert [a["reason"] for a in status["attempts"] if a["step"] == "train"] == [
        "Suspended",
        "Completed",
    ]
    assert status.get("restarts", 0) == 0
    assert result_of(place) == unbroken


def test_interrupt_and_go_on(
    place: Place, unbroken: Result, slow_run: subprocess.Popen[str]
) -> None:
    slow_run.send_signal(signal.SIGINT)
    output, _ = slow_run.communicate(timeout=WAIT_SECONDS)
    assert slow_run.returncode == 130
    assert "the same command goes on" in output
    resumed = place.finetune("run", str(place.folder / "job.yaml"))
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    status = status_of(place)
    assert [a["reason"] for a in status["attempts"] if a["step"] == "train"] == [
        "Stopped",
        "Completed",
    ]
    assert status.get("restarts", 0) == 0
    assert result_of(place) == unbroken


def test_a_second_interrupt_stops_at_once(place: Place, slow_run: subprocess.Popen[str]) -> None:
    slow_run.send_signal(signal.SIGINT)
    time.sleep(0.1)
    slow_run.send_signal(signal.SIGINT)
    began = time.monotonic()
    slow_run.communicate(timeout=WAIT_SECONDS)
    assert slow_run.returncode == 130
    assert time.monotonic() - began < 5


def tree(folder: Path) -> dict[str, int]:
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()
    }


def test_finished_is_finished(place: Place) -> None:
    manifest = place.write(a_dataset(), a_job())
    assert place.finetune("run", str(manifest)).returncode == 0
    before = tree(place.state)
    assert place.finetune("run", str(manifest)).returncode == 0
    after = tree(place.state)
    assert after == before, "a second run writes nothing"
    # Nor does it start again when the traces of its steps are gone.
    for step in list((place.state / "steps").iterdir()):
        subprocess.run(["rm", "-r", str(step)], check=True)
    assert place.finetune("run", str(manifest)).returncode == 0
    assert list((place.state / "steps").iterdir()) == []


def test_an_output_is_never_taken_over(place: Place) -> None:
    first = place.write(a_dataset(), a_job(output={"uri": "pvc://models"}))
    assert place.finetune("run", str(first)).returncode == 0
    result = place.state / "claims" / "models" / "default" / "tiny" / "run-1"
    before = tree(result)
    assert place.finetune("delete", "tiny").returncode == 0
    assert tree(result) == before
    other = place.write(a_dataset(), a_job(output={"uri": "pvc://models"}, lora={"rank": 8}))
    refused = place.finetune("run", str(other))
    assert refused.returncode == 1
    assert "already holds the result of job 'tiny'" in refused.stdout
    assert "spec.output.overwrite: true" in refused.stdout
    assert tree(result) == before
    assert place.finetune("delete", "tiny").returncode == 0
    same = place.finetune(
        "run", str(place.write(a_dataset(), a_job(output={"uri": "pvc://models"})))
    )
    assert same.returncode == 0
    assert "AlreadyTrained" in same.stdout
    assert tree(result) == before
    replaced = place.write(
        a_dataset(),
        a_job(output={"uri": "pvc://models", "overwrite": True}, lora={"rank": 8}, rerun=None),
    )
    assert place.finetune("delete", "tiny").returncode == 0
    assert place.finetune("run", str(replaced)).returncode == 0
    assert tree(result) != before


def test_two_unfinished_jobs_on_one_output(place: Place, slow_run: subprocess.Popen[str]) -> None:
    shared = {"uri": f"file://{place.folder}/shared"}
    del slow_run  # a first job runs in its own state folder; the second shares only the output
    manifest = place.write(a_dataset(), a_job("tiny", output=shared), name="second.yaml")
    claim = place.folder / "shared" / "default" / "tiny" / "run-1.incomplete"
    claim.mkdir(parents=True)
    (claim / "owner.json").write_text(json.dumps({"uid": "11112222-0000", "name": "tiny"}))
    refused = subprocess.run(
        [*place.command("run", str(manifest))[:-1], "--state", str(place.folder / "state2"), str(manifest)],
        cwd=place.folder, env=place.environment(), capture_output=True, text=True, timeout=WAIT_SECONDS,
    )  # fmt: skip
    assert refused.returncode == 1
    assert "is held by unfinished work of 'tiny'" in refused.stdout


def test_delete_leaves_the_retained_output_and_nothing_else(place: Place) -> None:
    manifest = place.write(a_dataset(), a_job())
    assert place.finetune("run", str(manifest)).returncode == 0
    output = set(tree(place.output()))
    deleted = place.finetune("delete", "tiny")
    assert deleted.returncode == 0
    assert "its output stays" in deleted.stdout
    assert place.finetune("delete", "dreg", "rows").returncode == 0
    left = {
        name
        for name in tree(place.state)
        if not name.startswith(("cache/", "events", "driver.lock", "objects.lock"))
    }
    prefix = "claims/tiny-output/default/tiny/run-1/"
    assert left == {prefix + name for name in output}


def test_delete_with_the_output(place: Place) -> None:
    manifest = place.write(a_dataset(), a_job(output={"retain": "Delete"}))
    assert place.finetune("run", str(manifest)).returncode == 0
    assert place.finetune("delete", "tiny").returncode == 0
    assert not list((place.state / "claims").rglob("*.safetensors"))


def test_rerun_and_ttl(place: Place) -> None:
    manifest = str(place.write(a_dataset(), a_job(ttlSecondsAfterFinished=0)))
    assert place.finetune("run", manifest).returncode == 0
    # The ttl has passed: steps and checkpoints go, the result and the job stay.
    assert place.finetune("run", manifest).returncode == 0
    assert not [p for p in (place.state / "steps").iterdir() if "tiny" in p.name]
    assert not list((place.state / "work").rglob("checkpoint-*"))
    assert (place.output() / "adapter_model.safetensors").exists()
    refused = place.finetune("run", manifest, "--set", "spec.lora.rank=8")
    assert refused.returncode == 2
    assert "`spec.lora` cannot change once the job has started" in refused.stderr
    again = place.finetune("run", manifest, "--set", "spec.lora.rank=8", "--set", "spec.rerun=1")
    assert again.returncode == 0, again.stdout + again.stderr
    assert (place.output(run=2) / "adapter_model.safetensors").exists()
    assert (place.output(run=1) / "adapter_model.safetensors").exists()


def test_a_deadline_ends_the_job(place: Place) -> None:
    manifest = place.write(a_dataset(), a_job(activeDeadlineSeconds=4, failurePolicy=POLICY))
    ran = place.finetune(
        "run", str(manifest), FINETUNE_TEST_HOOK=str(HOOK), FINETUNE_TEST_FAULT="slow:2"
    )
    assert ran.returncode == 1
    status = status_of(place)
    assert status["reason"] == "Deadline"
    assert "spec.activeDeadlineSeconds" in status["message"]
    assert not place.output().exists()


def test_a_stalled_attempt_is_restarted(place: Place, unbroken: Result) -> None:
    policy = {"stallTimeoutSeconds": 5, "maxRestarts": 3}
    manifest = place.write(a_dataset(), a_job(failurePolicy=policy))
    ran = place.finetune(
        "run", str(manifest), FINETUNE_TEST_HOOK=str(HOOK), FINETUNE_TEST_FAULT="hang:3"
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    attempts = [a["reason"] for a in status_of(place)["attempts"] if a["step"] == "train"]
    assert attempts == ["Stalled", "Completed"]
    assert result_of(place) == unbroken
