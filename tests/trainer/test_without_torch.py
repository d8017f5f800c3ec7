"""`validate` and `prepare` where PyTorch is absent, and where it is there and not imported.

The processes are the trainer's own, started as an operator starts them; a `sitecustomize` makes
packages absent.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_api.contract import ExitCode, JobFile, Termination
from finetune_trainer.prepare import prepare
from finetune_trainer.validate import validate
from tests.fakes.bench import Bench

ABSENT = "torch,trl,peft,accelerate,datasets,gguf,matplotlib"
HOOK = Path(__file__).parents[1] / "fakes" / "absent"
DATA = {"data": {"validationSplit": 0.25}, "lora": {"rank": 4, "modulesToSave": ["lm_head"]}}


@pytest.fixture
def bench(tmp_path: Path, model_folder: Path) -> Bench:
    return Bench.made(tmp_path, model_folder)


def ended(file: JobFile, **environment: str) -> Termination:
    """Run a step as its pod does, in a folder of its own; return its last word."""
    folder = Path(file.folders.base) / f"{file.step}-step"
    folder.mkdir()
    places = {"step": str(folder), "cache": str(folder / "cache")}
    file = file.model_copy(update={"folders": file.folders.model_copy(update=places)})
    (folder / "job.json").write_text(file.model_dump_json(by_alias=True))
    command = ["-m", "finetune_trainer", "run", "--job-file", str(folder / "job.json")]
    paths = os.pathsep.join(filter(None, [str(HOOK), os.environ.get("PYTHONPATH")]))
    subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **environment, "PYTHONPATH": paths},
        check=False,
        timeout=120,
    )
    return Termination.model_validate_json((folder / "termination.json").read_text())


def refused(bench: Bench, changes: dict[str, Any]) -> str:
    """Return the message of a preparation where PyTorch is absent."""
    end = ended(bench.prepare_file({"spec": changes}), FINETUNE_TEST_ABSENT=ABSENT)
    assert (end.exit_code, end.prepared) == (ExitCode.USER_ERROR, None), end
    assert end.error is not None
    return end.error.message


def cached(cache: Path) -> dict[str, bytes]:
    return {str(p.relative_to(cache)): p.read_bytes() for p in cache.rglob("*") if p.is_file()}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_prepared_without_torch_as_with_it(bench: Bench, method: str) -> None:
    spec = {**DATA, "method": method, "lora": DATA["lora"] if method == "lora" else None}
    file = bench.prepare_file({"spec": spec})
    wanted = prepare(file)
    assert "torch" in sys.modules, "the other side has it"
    end = ended(file, FINETUNE_TEST_ABSENT=ABSENT)
    assert end.prepared == wanted
    assert wanted.data.eval_rows == 6
    step = Path(file.folders.base) / "prepare-step"
    assert cached(step / "cache") == cached(Path(file.folders.cache))


def test_validated_without_torch_as_with_it(bench: Bench) -> None:
    file = bench.validate_file({"spec": {"source": {"uri": "file://rows.jsonl"}}})
    assert file.registration is not None
    with_tokens = {"spec": {"tokenizer": {"uri": "file://model"}}}
    file = bench.validate_file({"spec": {"source": {"uri": "file://rows.jsonl"}}}, with_tokens)
    wanted = validate(file)
    assert wanted.tokens is not None
    assert ended(file, FINETUNE_TEST_ABSENT=ABSENT).validated == wanted


@pytest.mark.parametrize("step", ["validate", "prepare"])
def test_not_imported_where_it_is_installed(bench: Bench, tmp_path: Path, step: str) -> None:
    source = {"spec": {"source": {"uri": "file://rows.jsonl"}}}
    file = bench.validate_file(source) if step == "validate" else bench.prepare_file()
    end = ended(file, FINETUNE_TEST_IMPORTS=str(tmp_path / "imports"))
    assert end.exit_code == 0, end
    told = sorted((tmp_path / "imports").read_text().splitlines())
    assert told == ["run", "worker"], "of none of the large packages"


def test_gguf_that_turns_out_to_be_one(bench: Bench) -> None:
    (bench.folder / "weights.gguf").write_bytes(b"GGUF")
    (bench.folder / "weights").symlink_to("weights.gguf")
    message = refused(bench, {"model": {"uri": "file://weights"}})
    assert "file://weights: this model needs torch to be converted" in message
    assert "weights.gguf is a GGUF file" in message
    assert "use the trainer image" in message


def test_pickle_weights(bench: Bench) -> None:
    (bench.folder / "model/model.safetensors").rename(bench.folder / "model/pytorch_model.bin")
    message = refused(bench, {"model": {"allowPickle": True}})
    assert "file://model: this model needs torch to be converted" in message
    assert "pickle files" in message
    assert "use the trainer image" in message


def test_a_models_own_code(bench: Bench) -> None:
    config = json.loads((bench.folder / "model/config.json").read_text())
    config["auto_map"] = {"AutoConfig": "configuration.Config"}
    (bench.folder / "model/config.json").write_text(json.dumps(config))
    message = refused(bench, {"model": {"trustRemoteCode": True}})
    assert "file://model: this model's own Python code needs torch" in message
    assert "use the trainer image" in message


def test_extra_arguments(bench: Bench) -> None:
    message = refused(bench, {"training": {"extraArguments": {"adam_beta2": 0.95}}})
    assert "`spec.training.extraArguments`: checking them needs torch" in message
    assert "use the trainer image" in message


def test_chat_templates_without_torch() -> None:
    """Every template's ids and masks, in a process that has no torch to find."""
    tests = [f"tests/trainer/{name}.py" for name in ("test_chat_templates", "test_masks")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        env={**os.environ, "PYTHONPATH": str(HOOK), "FINETUNE_TEST_ABSENT": ABSENT},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
