"""Removing outputs: what is the object's own, and nothing else whatever lies there."""

import json
from pathlib import Path

import pytest

from finetune_api.contract import ExitCode
from finetune_trainer.clean import main


def a_result(folder: Path, name: str = "x") -> Path:
    folder.mkdir(parents=True)
    manifest = {"uid": "u", "namespace": "a", "name": name, "run": 1}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def unfinished(folder: Path, name: str = "x") -> Path:
    folder.mkdir(parents=True)
    (folder / "owner.json").write_text(json.dumps({"uid": "u", "namespace": "a", "name": name}))
    return folder


def clean(claims: Path, kind: str) -> int:
    arguments = [
        "--location",
        "pvc://c/a/x",
        "--claims",
        str(claims),
        "--owner",
        "a/x",
        "--kind",
        kind,
    ]
    return main(arguments)


def test_a_job_takes_its_runs_and_exports_along(tmp_path: Path) -> None:
    root = tmp_path / "c/a/x"
    a_result(root / "run-1")
    unfinished(root / "run-2.incomplete")
    a_result(root / "exports/merged/run-1")
    assert clean(tmp_path, "FineTuneJob") == 0
    assert not root.exists()
    assert root.parent.exists()


def test_an_export_takes_its_folder_along(tmp_path: Path) -> None:
    root = a_result(tmp_path / "c/a/x")
    other = a_result(tmp_path / "c/a/y", "y")
    rest = unfinished(tmp_path / "c/a/x.incomplete")
    assert clean(tmp_path, "ModelExport") == 0
    assert (root.exists(), rest.exists(), other.exists()) == (False, False, True)


@pytest.mark.parametrize("kind", ["FineTuneJob", "ModelExport"])
def test_what_others_put_there_stays(tmp_path: Path, kind: str) -> None:
    """It may be why the object was refused; deleting that object must not remove it."""
    (tmp_path / "c/a/x/data").mkdir(parents=True)
    (tmp_path / "c/a/x/data/rows.jsonl").write_text("{}")
    theirs = a_result(tmp_path / "c/a/x/run-7", "somebody-else")
    assert clean(tmp_path, kind) == 0
    assert theirs.exists()
    assert (tmp_path / "c/a/x/data/rows.jsonl").exists()


def test_an_export_leaves_the_results_of_a_job_of_its_name(tmp_path: Path) -> None:
    theirs = a_result(tmp_path / "c/a/x/run-1")
    assert clean(tmp_path, "ModelExport") == 0
    assert theirs.exists()


def test_a_job_leaves_an_export_of_its_name(tmp_path: Path) -> None:
    theirs = a_result(tmp_path / "c/a/x")
    assert clean(tmp_path, "FineTuneJob") == 0
    assert (theirs / "manifest.json").exists()


def test_nothing_there_is_fine(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    assert clean(tmp_path, "ModelExport") == 0


def test_a_location_outside_the_claim_is_refused(tmp_path: Path) -> None:
    arguments = ["--location", "pvc://c/../d", "--claims", str(tmp_path), "--owner", "a/x"]
    assert main(arguments) == ExitCode.USER_ERROR
