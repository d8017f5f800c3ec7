"""Wrong input of every kind: refused where the table says, as what it says, with a message that helps."""

import builtins
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from finetune_api.contract import FAILURE_CLASSES, ExitCode, Folders, JobFile, Termination
from finetune_api.contradictions import contradictions
from finetune_api.errors import Refusal
from finetune_api.finetunejob import FineTuneJob
from finetune_api.objects import Resource
from finetune_api.resolve import Machine
from finetune_api.yaml_reader import read_documents
from finetune_cli.manifests import load_manifests
from finetune_operator.admission import admit
from tests.builders import a_dataset, a_job, an_export, merged
from tests.fakes.bench import Bench
from tests.fakes.broken import change_files, generated
from tests.fakes.hub import Services
from tests.fakes.world import World

Row = dict[str, Any]
TABLE = Path(__file__).parents[1] / "bad_inputs.yaml"
ROWS: list[Row] = read_documents(TABLE.read_text(encoding="utf-8"), source=TABLE.name)[0]["rows"]
BASES = {"FineTuneJob": a_job, "DatasetRegistration": a_dataset, "ModelExport": an_export}
CLASSES = ("schema", "resolution", "validation", "preparation", "running")
LEAST_A_CLASS = 15
LEAST_WORDS = 2
ADVICE = re.compile(
    r"\b(add|begin|change|choose|copy|correct|create|cut|delete|did you mean|export|free|give|is the network"
    r"|install|keep|leave|look|lower|make|move|must|name|needs?|put|quote|raise|remove|rename|renew|report|save"
    r"|see|set|shorten|split|store|train|use|write)\b"
)
NEEDED = {
    "unknown field", "text for a whole number", "rank 0", "epochs with maxSteps", "data missing",
    "broken JSON", "empty file", "wrong tags", "mixed shapes", "a 10 MB row", "invalid UTF-8",
    "model that does not exist", "no chat template", "pickle weights", "output not writable",
    "token needed and absent", "batch product that does not agree", "operator-owned extraArguments",
}  # fmt: skip


def rows_of(class_: str) -> Any:
    rows = [pytest.param(row, id=row["name"]) for row in ROWS if row["class"] == class_]
    return pytest.mark.parametrize("row", rows)


def test_the_table_covers_what_it_must() -> None:
    counts = Counter(row["class"] for row in ROWS)
    assert set(counts) == set(CLASSES)
    assert min(counts.values()) >= LEAST_A_CLASS
    names = [row["name"] for row in ROWS]
    assert len(set(names)) == len(names)
    assert set(names) >= NEEDED
    for row in ROWS:
        assert len(row["contains"]) >= LEAST_WORDS, row["name"]
        assert ADVICE.search(row["contains"][-1]), f"{row['name']}: no advice at the end"


def check_message(row: Row, message: str) -> None:
    missing = [words for words in row["contains"] if words not in message]
    assert not missing, f"{missing} not in: {message}"
    told = [words for words in row.get("lacks", []) if words in message]
    assert not told, f"{told} in: {message}"


def check_refusal(row: Row, act: Callable[[], object]) -> None:
    """Whoever writes it is told at once, in one of the problems."""
    assert row["reason"] == "schema"
    with pytest.raises(Refusal) as refusal:
        act()
    problems = refusal.value.problems
    check_message(row, next((p for p in problems if row["contains"][0] in p), "\n".join(problems)))


def check_failure(row: Row, act: Callable[[], object]) -> BaseException:
    """The step ends as its process would: with the class of the failure and its message."""
    from finetune_trainer.worker import _outcome_of

    try:
        done = act()
    except Exception as error:
        check_termination(row, _outcome_of(error, rank=0))
        return error
    pytest.fail(f"accepted: {done}")


def check_termination(row: Row, end: Termination) -> None:
    assert end.error is not None
    assert (FAILURE_CLASSES[ExitCode(end.exit_code)], row["reason"]) == (row["reason"],) * 2, (
        end.error
    )
    check_message(row, end.error.message)


def manifest(row: Row) -> Row:
    base: Row = BASES[row.get("kind", "FineTuneJob")]()
    return merged(base, row.get("changes", {}))


@rows_of("schema")
def test_schema(row: Row, tmp_path: Path) -> None:
    def act() -> Resource:
        path = tmp_path / "job.yaml"
        path.write_text(row.get("text") or json.dumps(manifest(row)), encoding="utf-8")
        body = load_manifests([path], [])[0].body
        return admit(body, stored(row))

    check_refusal(row, act)


def stored(row: Row) -> Resource | None:
    if "old" not in row:
        return None
    return admit(merged(BASES[row.get("kind", "FineTuneJob")](), row["old"]))


@rows_of("resolution")
def test_resolution(row: Row, tmp_path: Path) -> None:
    if "set" in row:
        path = tmp_path / "job.yaml"
        path.write_text(json.dumps(a_job()), encoding="utf-8")
        check_refusal(row, lambda: admit(load_manifests([path], [row["set"]])[0].body))
    elif "machine" in row:
        job = admit(manifest(row))
        assert isinstance(job, FineTuneJob)
        check_message(row, "; ".join(contradictions(job.spec, here=Machine(**row["machine"]))))
    else:
        status = settled(row)
        failure = getattr(status, "failure", None)
        assert row["reason"] == (failure.failure_class if failure else status.reason)
        check_message(row, failure.message if failure else status.message)


def settled(row: Row) -> Any:
    """Return the status of an object when nothing more is decided; no step of it may have been made."""
    data = [] if row.get("registration") == "absent" else [a_dataset()]
    world = World(*data, manifest(row))
    world.settle()
    for name in world.running():
        failing = "registration" in row
        world.end(name, ExitCode.DATA_ERROR if failing else 0, message=row.get("registration", ""))
    world.settle()
    assert {world.made[name].job_file.step for name in world.order} <= {"validate"}
    return world.objects[row.get("kind", "FineTuneJob"), manifest(row)["metadata"]["name"]].status


@rows_of("validation")
def test_validation(row: Row, tmp_path: Path) -> None:
    from finetune_trainer.validate import InvalidRows, validate

    if "data" in row:
        path = tmp_path / row.get("file", "rows.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(generated(row["data"]))
    source = {"spec": {"source": {"uri": f"file://{row.get('file', 'rows.jsonl')}"}}}
    file = Bench(tmp_path).validate_file(source, row.get("changes", {}))
    error = check_failure(row, lambda: validate(file))
    assert isinstance(error, InvalidRows) == ("row" in row)
    if isinstance(error, InvalidRows):
        assert (error.errors[0].row, error.errors[0].field) == (row["row"], row["field"])


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        yield Services(stack, patch, tmp_path_factory.mktemp("trust"))


@pytest.fixture
def bench(tmp_path: Path, model_folder: Path) -> Bench:
    return Bench.made(tmp_path, model_folder)


@rows_of("preparation")
def test_preparation(row: Row, bench: Bench, services: Services) -> None:
    from finetune_trainer.prepare import prepare

    if "service" in row:
        row = json.loads(json.dumps(row).replace("{port}", str(services.port_of(row["service"]))))
    change_files(bench.folder, row.get("before", []))
    file = bench.prepare_file(row.get("changes"))
    change_files(bench.folder, row.get("files", []))
    folders = bench.folders(row.get("folders"))
    check_failure(row, lambda: prepare(file.model_copy(update={"folders": folders})))


@rows_of("running")
def test_running(row: Row, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "error" in row:
        error = getattr(builtins, row["error"]["type"])(*row["error"]["arguments"])
        check_failure(row, lambda: _raise(error))
    elif "end" in row:
        check_termination(row, judged(row["end"], request.getfixturevalue("tmp_path"), monkeypatch))
    elif row["step"] == "train":
        file = prepared(row, request.getfixturevalue("bench"))
        check_failure(row, lambda: run_step(file))
    else:
        file = exporting(row, request, monkeypatch)
        check_failure(row, lambda: run_step(file))


def _raise(error: Exception) -> None:
    raise error


def run_step(file: JobFile) -> object:
    from finetune_trainer.worker import _run_step

    return _run_step(file)


def judged(end: Row, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Termination:
    """Return what the supervisor makes of the end of a process that left no word."""
    from finetune_trainer.supervise import Supervisor

    (folder / "log.txt").touch()
    file = JobFile(
        step="train", namespace="d", name="n", uid="u", folders=Folders(step=str(folder))
    )
    supervisor = Supervisor(file, folder / "job.json")
    kills = supervisor._memory_kills + end["memory_kills"]
    monkeypatch.setattr("finetune_trainer.supervise._memory_kills", lambda: kills)
    return supervisor._judge(end["status"])


def prepared(row: Row, bench: Bench) -> JobFile:
    """Return a train step whose files were changed since they were prepared."""
    from finetune_trainer.prepare import prepare

    change_files(bench.folder, row.get("files", []))
    file = bench.prepare_file(row.get("changes"))
    file = bench.train_file(file, prepare(file))
    change_files(bench.folder, row.get("later", []))
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> tuple[Path, JobFile]:
    """Return a folder with a trained adapter, and the job file that made it."""
    bench = Bench.made(tmp_path_factory.mktemp("trained"), model_folder)
    file = prepared({"changes": {"spec": {"training": {"maxSteps": 2}}}}, bench)
    run_step(file)
    return bench.folder, file


def test_a_damaged_checkpoint_is_skipped(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """No input of a user's: so the run goes on, from the checkpoint before it."""
    changes = {"training": {"maxSteps": 5}, "checkpoint": {"keepLast": 5}}
    file = prepared({"changes": {"spec": changes}}, bench)
    run_step(file)
    damaged = "work/run-1/attempt-1-*/checkpoint-[45]/optimizer.pt"
    change_files(bench.folder, [{"remove": "claims"}, {"cut": {damaged: 99}}])
    run_step(file.model_copy(update={"attempt": 2}))
    told = capsys.readouterr().out
    assert "Skipped an incomplete checkpoint: checkpoint-4" in told
    assert "Resuming from step 2 of 5 steps" in told


def exporting(row: Row, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> JobFile:
    """Return an export step of a trained adapter, in a copy of its folder that was changed."""
    import shutil

    from finetune_api.modelexport import ExportFormat
    from finetune_trainer.exporters import EXPORTERS

    origin, file = request.getfixturevalue("trained")
    bench = Bench(request.getfixturevalue("tmp_path") / "copy")
    shutil.copytree(origin, bench.folder)
    change_files(bench.folder, row.get("files", []))
    factor = {"wrong": 1.5, "nan": "nan"}.get(row.get("exporter", ""))
    write = EXPORTERS[ExportFormat.HUGGINGFACE]

    def write_wrong(parts: Any, settings: Any, folder: Path) -> None:
        write(parts, settings, folder)
        spoilt = {"model.norm.weight": {"times": factor}}
        change_files(folder, [{"weights": {"model.safetensors": spoilt}}])

    if factor is not None:
        monkeypatch.setitem(EXPORTERS, ExportFormat.HUGGINGFACE, write_wrong)
    return bench.export_file(file)
