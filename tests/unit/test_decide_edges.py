"""Decisions on input that is admissible and extreme: none may raise, none may lose an attempt."""

from dataclasses import replace

import pytest

from finetune_api.contract import ExitCode, Termination
from finetune_api.modelexport import ExportFormat, JobExport
from finetune_api.objects import parse
from finetune_api.resolve import Machine
from finetune_operator.conditions import is_true
from finetune_operator.manifests.labels import STEP, step_labels
from finetune_operator.plan import Key
from finetune_operator.steps.export import step_name
from finetune_operator.steps.naming import run_name
from tests.builders import a_dataset, a_job, an_export
from tests.fakes.world import World

LONG = "e" * 63


def walk_to(world: World, step: str) -> None:
    world.settle()
    while not any(f"-{step}-" in name for name in world.running()):
        world.end(world.running()[0])
        world.settle()


def test_a_job_name_leaves_room_for_the_host_name_of_its_pod() -> None:
    """Measured: the API server refuses an Indexed Job whose name and "-0" exceed 63 characters."""
    metadata = World(a_job(name="n" * 52)).job.metadata
    assert len(run_name(metadata, run=1, step="train", attempt=1)) <= 61


def test_the_longest_name_of_an_export_is_no_obstacle() -> None:
    name = step_name(JobExport(name=LONG, format=ExportFormat.HUGGINGFACE))
    assert len(step_labels(Key("FineTuneJob", "a", "b"), "u", run=1, step=name)[STEP]) <= 63
    world = World(a_dataset(), a_job(exports=[{"name": LONG, "format": "huggingface"}]))
    world.settle()
    for _ in range(3):
        for running in world.running():
            world.end(running)
        world.settle()
    assert [a.step for a in world.job.status.attempts] == ["prepare", "train", name]


def test_the_longest_message_is_no_obstacle() -> None:
    world = World(a_dataset(), a_job())
    walk_to(world, "train")
    world.end(world.running()[0], ExitCode.INFRASTRUCTURE, message="m" * 4096)
    world.settle()
    assert world.job.status.attempts[-1].number == 2
    assert all(len(c.message) <= 4096 for c in world.job.status.conditions)


def test_the_first_step_is_not_forgotten_over_many_attempts() -> None:
    """Else preparing would seem never made, and what it needs would be waited for, or be stopped for."""
    world = World(a_dataset(), a_job(failurePolicy={"maxRestarts": 100}))
    walk_to(world, "train")
    for _ in range(15):
        world.end(world.running()[0], ExitCode.INFRASTRUCTURE)
        world.settle()
    attempts = world.job.status.attempts
    assert len(attempts) == 10
    assert (attempts[0].step, attempts[0].number) == ("prepare", 1)
    assert (attempts[-1].step, attempts[-1].number) == ("train", 16)


@pytest.mark.parametrize("step", ["prepare", "train"])
def test_an_end_without_its_result_is_a_failure(step: str) -> None:
    """Else nothing would ever wake the job again."""
    world = World(a_dataset(), a_job())
    walk_to(world, step)
    for _ in range(2):
        name = world.running()[0]
        world.runs[name] = replace(
            world.runs[name], is_running=False, termination=Termination(exit_code=0), ended_at=0.0
        )
        world.settle()
    assert world.job.status.phase == "Failed"
    assert "without a result" in world.job.status.message


def test_a_last_word_lost_later_is_not_held_against_the_job() -> None:
    """A node that is scaled away takes its ended pods, and their last words, with it."""
    world = World(a_dataset(), a_job(failurePolicy={"maxRestarts": 0}))
    walk_to(world, "train")
    name = next(n for n in world.runs if "-prepare-" in n)
    world.runs[name] = replace(world.runs[name], termination=None)
    world.settle()
    assert not is_true(world.job.status.conditions, "Failed")
    assert world.job.status.restarts == 0
    world.finish_all()
    assert world.job.status.phase == "Succeeded"


def test_running_time_before_a_suspension_counts() -> None:
    """On a cluster a stopped run is gone, with its times, before the next look."""
    world = World(a_dataset(), a_job(activeDeadlineSeconds=100))
    walk_to(world, "train")
    world.pass_time(60)
    world.change("FineTuneJob", suspend=True)
    world.step(("FineTuneJob", "tiny"))
    world.runs = {name: run for name, run in world.runs.items() if "-train-" not in name}
    world.settle()
    assert world.job.status.phase == "Suspended"
    assert world.job.status.running_seconds == 60


def rows_of(size: int, *, machine: Machine | None = None) -> World:
    names = [f"rows-{number}" for number in range(32)]
    sets = [a_dataset(name, source={"uri": None, "inline": "x" * size}) for name in names]
    world = World(*sets, a_job(datasets=[{"name": name} for name in names]))
    world.machine = machine
    world.settle()
    for name in world.running():
        world.end(name)
    world.settle()
    return world


def test_inline_rows_that_no_config_map_holds_are_refused() -> None:
    world = rows_of(65536)
    assert world.job.status.phase == "Failed"
    assert "2059 KiB" in world.job.status.message
    assert "source.uri" in world.job.status.message
    assert not any("-prepare-" in name for name in world.order), "before anything is made"


@pytest.mark.parametrize("world", [rows_of(20000), rows_of(65536, machine=Machine())])
def test_inline_rows_that_fit_are_taken(world: World) -> None:
    assert any("-prepare-" in name for name in world.order)


def test_an_export_merges_into_the_base_of_the_run_it_exports() -> None:
    world = World(a_dataset(), a_job())
    world.finish_all()
    first = next(n for n, run in world.runs.items() if run.step == "prepare")
    world.change("FineTuneJob", rerun=1)
    world.finish_all()
    end = world.runs[first].termination
    assert end is not None
    assert end.prepared is not None
    old = end.prepared.model_copy(
        update={"model": end.prepared.model.model_copy(update={"folder": "models/of-run-1"})}
    )
    world.runs[first] = replace(
        world.runs[first], run=1, termination=end.model_copy(update={"prepared": old})
    )
    body = {**an_export(), "metadata": {"name": "merged", "uid": "e"}}
    world.objects["ModelExport", "merged"] = parse(body)
    world.settle()
    made = next(r for r in world.made.values() if r.owner.kind == "ModelExport")
    assert made.job_file.export is not None
    assert made.job_file.export.prepared is not None
    assert made.job_file.export.prepared.folder == "models/x"


def test_validations_of_old_specs_are_removed() -> None:
    world = World(a_dataset())
    world.finish_all()
    world.change("DatasetRegistration", refresh=1)
    world.finish_all()
    assert world.removed == [world.order[0]]
