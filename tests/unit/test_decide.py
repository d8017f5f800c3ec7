"""Decisions, walked through in memory: every way a job can go, and what must hold on all of them."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.compute import FailurePolicy
from finetune_api.contract import ExitCode
from finetune_operator.conditions import is_true
from finetune_operator.steps.naming import run_name
from tests.builders import a_dataset, a_job, an_export
from tests.fakes.world import PREPARED, RESULTS, World

MERGED = {"name": "merged", "format": "huggingface"}


def a_world(**spec: Any) -> World:
    return World(a_dataset(), a_job(**spec))


def steps_of(world: World) -> list[str]:
    return [world.made[name].job_file.step for name in world.order]


def test_the_way_of_a_job() -> None:
    world = a_world(exports=[MERGED])
    world.finish_all()
    assert steps_of(world) == ["validate", "prepare", "train", "export"]
    status = world.job.status
    assert (status.phase, status.reason) == ("Succeeded", "Completed")
    assert is_true(status.conditions, "Succeeded")
    assert is_true(status.conditions, "Finished")
    assert [a.kind for a in status.artifacts] == ["adapter", "huggingface"]
    assert status.resolved is not None
    assert status.resolved.total_steps == 6


def test_an_attempt_is_recorded_before_its_run_is_made() -> None:
    world = a_world()
    world.settle()
    world.end(world.running()[0])
    key = ("FineTuneJob", "tiny")
    world.step(("DatasetRegistration", "rows"))
    plan = world.decide(key)
    assert plan.status is not None
    assert plan.status.attempts[-1].number == 1
    assert [run.job_file.step for run in plan.runs] == ["prepare"]
    # It was recorded, and then nobody was left to make it.
    world.objects[key] = world.objects[key].model_copy(update={"status": plan.status})
    again = world.step(key)
    assert again.status in (None, plan.status)
    assert again.runs == plan.runs
    assert not world.decide(key).runs


def test_a_decision_repeated_changes_nothing() -> None:
    world = a_world(exports=[MERGED])
    world.settle()
    while running := world.running():
        for key in list(world.objects):
            plan = world.decide(key)
            assert not plan.runs
            assert not plan.events
            assert plan.status in (None, world.objects[key].status)
        world.end(running[0])
        world.settle()


@pytest.mark.parametrize(
    ("code", "attempts", "phase", "failure"),
    [
        (ExitCode.USER_ERROR, 1, "Failed", "UserError"),
        (ExitCode.DATA_ERROR, 1, "Failed", "DataError"),
        (ExitCode.BUG, 2, "Failed", "Internal"),
        (ExitCode.INFRASTRUCTURE, 4, "Failed", "Infrastructure"),
        (ExitCode.STALLED, 4, "Failed", "Stalled"),
        (ExitCode.EVICTED, 4, "Failed", "Infrastructure"),
        (ExitCode.OUT_OF_MEMORY, 2, "Failed", "OutOfMemory"),
        (33, 2, "Failed", "Internal"),
    ],
)
def test_a_failure_is_tried_again_as_its_class_says(
    code: int, attempts: int, phase: str, failure: str
) -> None:
    world = a_world()
    walk_to_train(world)
    for _ in range(9):
        for name in world.running():
            world.end(name, code, message="told why")
        world.settle()
    trains = [name for name in world.order if "-train-" in name]
    assert len(trains) == attempts
    status = world.job.status
    assert status.phase == phase
    assert status.failure is not None
    assert status.failure.failure_class == failure
    assert status.failure.message == "told why"
    assert is_true(status.conditions, "Stalled"), "what Flux and Helm read as failed"


def walk_to_train(world: World) -> None:
    world.settle()
    while not any("-train-" in name for name in world.running()):
        world.end(world.running()[0])
        world.settle()


def test_out_of_memory_halves_the_micro_batch_once() -> None:
    world = a_world(training={"globalBatchSize": 8})
    walk_to_train(world)
    first = world.made[world.running()[0]].job_file
    world.end(world.running()[0], ExitCode.OUT_OF_MEMORY)
    world.settle()
    second = world.made[world.running()[0]].job_file
    assert (first.micro_batch_divisor, second.micro_batch_divisor) == (1, 2)
    assert second.resolved == first.resolved
    world.end(world.running()[0], ExitCode.OUT_OF_MEMORY)
    world.settle()
    assert world.job.status.phase == "Failed"


def test_out_of_memory_with_a_given_micro_batch_fails_at_once() -> None:
    world = a_world(training={"perDeviceBatchSize": 2})
    walk_to_train(world)
    world.end(world.running()[0], ExitCode.OUT_OF_MEMORY)
    world.settle()
    assert world.job.status.phase == "Failed"


def test_evictions_with_progress_do_not_count() -> None:
    world = a_world(failurePolicy={"maxRestarts": 0})
    walk_to_train(world)
    for step in (2, 4, 5):
        world.end(world.running()[0], ExitCode.EVICTED, step=step, resumed=step - 1)
        world.settle()
        assert world.running(), "an eviction that saved is not held against the job"
    world.end(world.running()[0], ExitCode.EVICTED, step=5, resumed=5)
    world.settle()
    assert world.job.status.phase == "Failed"


def test_suspend_keeps_the_job_and_resume_goes_on() -> None:
    world = a_world()
    walk_to_train(world)
    world.pass_time(100)
    world.change("FineTuneJob", suspend=True)
    world.settle()
    assert world.running() == []
    assert world.job.status.phase == "Suspended"
    world.pass_time(1000)
    world.change("FineTuneJob", suspend=False)
    world.finish_all()
    assert world.job.status.phase == "Succeeded"
    assert [a.reason for a in world.job.status.attempts if a.step == "train"] == [
        "Suspended",
        "Completed",
    ]
    assert world.job.status.restarts == 0


def test_the_deadline_counts_running_time_only() -> None:
    world = a_world(activeDeadlineSeconds=100)
    walk_to_train(world)
    world.pass_time(60)
    world.change("FineTuneJob", suspend=True)
    world.settle()
    world.pass_time(10_000)
    world.change("FineTuneJob", suspend=False)
    world.settle()
    assert world.running(), "suspended time does not count"
    world.pass_time(60)
    world.settle()
    assert world.job.status.reason == "Deadline"
    assert world.running() == []


@pytest.mark.parametrize("case", ["missing", "not ready", "changed since"])
def test_the_dataset_gate(case: str) -> None:
    world = World(a_job()) if case == "missing" else a_world()
    if case == "not ready":
        world.settle()
        world.end(world.running()[0], ExitCode.DATA_ERROR, message="row 3: `output` is missing")
    world.settle()
    if case == "changed since":
        world.end(world.running()[0])
        world.step(("DatasetRegistration", "rows"))
        world.change("DatasetRegistration", refresh=1)
        world.step(("FineTuneJob", "tiny"))
    status = world.job.status
    assert status.phase == "Pending"
    reason = "DatasetNotFound" if case == "missing" else "DatasetNotReady"
    assert status.reason == reason
    assert "'rows'" in status.message
    assert not any("-prepare-" in name for name in world.order)


def test_contradictions_end_the_job_before_anything_starts() -> None:
    world = a_world(
        training={"globalBatchSize": 6, "perDeviceBatchSize": 4, "gradientAccumulationSteps": 2}
    )
    world.finish_all()
    assert world.job.status.phase == "Failed"
    assert "they must be equal" in world.job.status.message
    assert steps_of(world) == ["validate"]


def test_a_refused_job_is_looked_at_again_when_it_is_corrected() -> None:
    world = a_world(evalDatasets=None, training={"evalSteps": 2})
    world.finish_all()
    assert world.job.status.phase == "Failed"
    assert "evalSteps" in world.job.status.message
    training = world.job.spec.training
    assert training is not None
    world.change("FineTuneJob", training=training.model_copy(update={"eval_steps": None}))
    world.finish_all()
    assert world.job.status.phase == "Succeeded"


def test_a_result_that_is_there_is_adopted() -> None:
    world = a_world()
    world.settle()
    world.end(world.running()[0])
    world.settle()
    adopted = PREPARED.model_copy(update={"adopted": [], "adopted_steps": 6})
    kept = dict(RESULTS["prepare"])
    RESULTS["prepare"]["prepared"] = adopted
    try:
        world.end(world.running()[0])
    finally:
        RESULTS["prepare"] = kept
    world.settle()
    assert (world.job.status.phase, world.job.status.reason) == ("Succeeded", "AlreadyTrained")
    assert "train" not in steps_of(world)


def test_rerun_starts_again_and_only_rerun() -> None:
    world = a_world()
    world.finish_all()
    made = len(world.order)
    world.runs.clear()
    world.settle()
    world.pass_time(10**6)
    world.settle()
    assert len(world.order) == made
    world.change("FineTuneJob", rerun=1)
    world.finish_all()
    assert steps_of(world)[made:] == ["prepare", "train"]
    assert world.job.status.run == 2


def test_ttl_removes_runs_when_its_time_has_come() -> None:
    world = a_world(ttlSecondsAfterFinished=60)
    world.finish_all()
    world.settle()
    assert world.removed == []
    assert world.decide(("FineTuneJob", "tiny")).requeue_after == 60
    world.pass_time(61)
    plan = world.step(("FineTuneJob", "tiny"))
    assert plan.removes_work
    assert plan.removed_outputs == ()
    assert {world.made[name].job_file.step for name in world.removed} == {"prepare", "train"}


@pytest.mark.parametrize("retain", ["Retain", "Delete"])
def test_delete_stops_first_and_removes_what_is_not_retained(retain: str) -> None:
    world = a_world(output={"retain": retain})
    walk_to_train(world)
    world.delete("FineTuneJob")
    key = ("FineTuneJob", "tiny")
    first = world.step(key)
    assert first.stops
    assert not first.releases_object
    second = world.step(key)
    assert second.releases_object
    root = "pvc://tiny-output/default/tiny"
    assert second.removed_outputs == (
        (root,) if retain == "Delete" else (f"{root}/run-1.incomplete",)
    )


def test_an_export_waits_for_its_job() -> None:
    world = World(a_dataset(), a_job(), an_export())
    world.settle()
    assert world.export.status.reason == "WaitingForJob"
    world.finish_all()
    assert world.export.status.phase == "Succeeded"
    assert world.export.status.verification is not None


def test_an_export_of_nothing_says_so() -> None:
    world = World(an_export())
    world.settle()
    assert world.export.status.reason == "JobNotFound"
    assert "'tiny'" in world.export.status.message


def test_a_registration_is_validated_again_when_it_changes() -> None:
    world = World(a_dataset())
    world.finish_all()
    assert len(world.order) == 1
    world.change("DatasetRegistration", refresh=1)
    world.finish_all()
    assert len(world.order) == 2


def test_names_fit_a_label() -> None:
    job = World(a_job(name="n" * 52)).job
    steps = ["prepare", "train", "export-" + "x" * 63, "export-" + "x" * 62 + "y"]
    names = {run_name(job.metadata, run=1000, step=step, attempt=100) for step in steps}
    assert len(names) == len(steps)
    assert max(map(len, names)) <= 63


EVENTS = st.lists(
    st.one_of(
        st.sampled_from(["ok", "vanish", "suspend", "resume", "time", "crash", "rerun"]),
        st.sampled_from(list(ExitCode)).filter(bool).map(lambda code: f"exit {int(code)}"),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(EVENTS)
def test_whatever_happens(events: list[str]) -> None:
    world = a_world(exports=[MERGED], failurePolicy={"maxRestarts": 2})
    policy = FailurePolicy(max_restarts=2)
    for event in events:
        world.settle()
        was_finished = is_true(world.job.status.conditions, "Finished")
        made, run = len(world.order), world.job.status.run
        running = world.running()
        job_runs = [name for name in running if name.startswith("tiny-")]
        assert len(job_runs) <= 1, "one step of a job runs at a time"
        if event == "ok" and running:
            world.end(running[0], step=6)
        elif event.startswith("exit") and running:
            world.end(running[0], int(event.split()[1]), step=1)
        elif event == "vanish" and running:
            world.runs.pop(running[0])
        elif event in ("suspend", "resume"):
            world.change("FineTuneJob", suspend=event == "suspend")
        elif event == "rerun":
            world.change("FineTuneJob", rerun=world.job.spec.rerun + 1)
        elif event == "time":
            world.pass_time(1000)
        # "crash": the process forgets everything; decisions remember nothing anyway
        if event == "vanish" and running:
            world.order = [name for name in world.order if name != running[0]]
            continue
        world.settle()
        if was_finished and event != "rerun":
            jobs = [name for name in world.order[made:] if name.startswith("tiny-")]
            assert jobs == [], "finished is finished"
        assert world.job.status.run >= run
        assert world.job.status.restarts <= policy.max_restarts + 1
        assert len(world.job.status.attempts) <= 10
