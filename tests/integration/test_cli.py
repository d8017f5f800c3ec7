"""The command line around a run: what a user types and reads."""

import json
from pathlib import Path

import pytest

from tests.builders import a_dataset, a_job
from tests.conftest import Place, make_place


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, warm_python: str
) -> Place:
    place = make_place(tmp_path_factory.mktemp("cli"), model_folder, warm_python)
    ran = place.finetune("run", str(place.write(a_dataset(), a_job())))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Succeeded FineTuneJob tiny" in ran.stdout
    assert "adapter" in ran.stdout
    assert "loss.png" in ran.stdout
    assert "Next: finetune local chat tiny --compare" in ran.stdout
    return place


def test_get(trained: Place) -> None:
    shown = trained.finetune("get")
    assert shown.stdout.splitlines()[0].split() == [
        "NAME",
        "PHASE",
        "FORMAT",
        "ROWS",
        "INVALID",
        "REASON",
        "AGE",
    ]
    wide = trained.finetune("get", "ftj", "-o", "wide").stdout.splitlines()
    assert wide[1].split()[:3] == ["tiny", "Succeeded", "6/6"]
    assert "file://model" in wide[1]
    body = json.loads(trained.finetune("get", "ftj", "tiny", "-o", "json").stdout)
    assert body["kind"] == "FineTuneJob"
    assert "spec:" in trained.finetune("get", "ftj", "tiny", "-o", "yaml").stdout


def test_describe(trained: Place) -> None:
    text = trained.finetune("describe", "tiny").stdout
    for part in (
        "Phase:      Succeeded (Completed)",
        "Spec:",
        "resolved:",
        "Attempts:",
        "Conditions:",
        "Events:",
    ):
        assert part in text
    assert "`training.optimizer` = adamw_torch_fused: AdamW in one kernel" in text


def test_logs(trained: Place) -> None:
    lines = trained.finetune("logs", "tiny").stdout
    assert "Step 6/6  loss" in lines
    assert trained.finetune("logs", "tiny", "--step", "prepare").returncode == 0
    missing = trained.finetune("logs", "tiny", "--step", "export-x")
    assert missing.returncode == 2
    assert "there: prepare, train" in missing.stderr


def test_preview(trained: Place) -> None:
    manifest = str(trained.folder / "job.yaml")
    rows = [
        json.loads(line)
        for line in trained.finetune("preview", manifest, "-o", "json").stdout.splitlines()
    ]
    first = rows[0]
    trained_text = "".join(
        t for kind, tokens in first["pieces"] if kind == "trained" for t in tokens
    )
    assert trained_text == "It is 0.<|im_end|>"
    context = "".join(t for kind, tokens in first["pieces"] if kind == "context" for t in tokens)
    assert "Question 0: what is 0 plus 0?" in context
    cut = trained.finetune(
        "preview", manifest, "--set", "spec.data.maxLength=20", "-o", "json"
    ).stdout
    assert any(kind == "cut" for kind, _ in json.loads(cut.splitlines()[0])["pieces"])
    text = trained.finetune("preview", manifest).stdout
    assert "Resolved configuration:" in text
    assert "totalSteps: 6" in text
    assert "Decided for you:" in text


def test_chat(trained: Place) -> None:
    talked = trained.finetune(
        "chat", "tiny", "--compare", "--prompt", "What is 3 plus 3?", "--max-new-tokens", "5"
    )
    assert talked.returncode == 0, talked.stderr
    assert "base>" in talked.stdout
    assert "tuned>" in talked.stdout
    untrained = trained.finetune("chat", "nothing")
    assert untrained.returncode == 2
    assert "FineTuneJob 'nothing' does not exist" in untrained.stderr


def test_apply_twice_changes_nothing(trained: Place) -> None:
    again = trained.finetune("run", str(trained.folder / "job.yaml"))
    assert again.returncode == 0
    assert "finetunejob/tiny unchanged" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nothing.yaml"], "nothing.yaml: no such file"),
        (["run", "job.yaml", "--set", "training.maxSteps"], "it must be PATH=VALUE"),
        (
            ["run", "job.yaml", "--set", "mex/x:spec.format=y"],
            "these files hold no ModelExport 'x'",
        ),
        (["run", "job.yaml", "--set", "spec.training.epoch=1"], "did you mean `epochs`?"),
        (["get", "pods"], "'pods' is no kind"),
        (["describe", "ftj", "other"], "FineTuneJob 'other' does not exist"),
        (["delete", "other"], "FineTuneJob 'other' does not exist"),
    ],
)
def test_mistakes_are_told_in_one_line(trained: Place, arguments: list[str], message: str) -> None:
    told = trained.finetune(*arguments)
    assert told.returncode == 2
    assert message in told.stderr
    assert "Traceback" not in told.stderr


def test_one_wrong_object_stops_all(place: Place) -> None:
    manifest = place.write(a_dataset(), a_job(lora={"rank": 0}))
    refused = place.finetune("run", str(manifest))
    assert refused.returncode == 2
    assert "`spec.lora.rank`: 0 is refused; it must be at least 1" in refused.stderr
    assert place.finetune("get").stdout.startswith("No objects")
