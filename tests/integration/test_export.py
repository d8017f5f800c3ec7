"""Exports: what is published computes what was trained, or nothing is published."""

import json
from pathlib import Path

import pytest

from finetune_api.contract import JobFile
from tests.builders import a_dataset, a_job, an_export
from tests.conftest import Place

MERGED = {"name": "merged", "format": "huggingface", "huggingface": {"maxShardSize": "50KB"}}


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, warm_python: str
) -> Place:
    """Return a place with a trained job, its own export, a ModelExport and a full fine-tuning."""
    from tests.conftest import make_place

    place = make_place(tmp_path_factory.mktemp("export"), model_folder, warm_python)
    full = a_job("full", method="full", lora=None, exports=[MERGED])
    manifest = place.write(a_dataset(), a_job(exports=[MERGED]), full, an_export())
    ran = place.finetune("run", str(manifest))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return place


def logits(folder: Path, adapter: Path | None = None) -> object:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(torch.arange(3, 40)[None]).logits


def exports(place: Place, job: str) -> Path:
    return place.output(job).parent / "exports" / "merged" / "run-1"


def test_a_merged_model_computes_what_was_trained(trained: Place) -> None:
    import torch

    base, adapter = trained.folder / "model", trained.output()
    ours = logits(base, adapter)
    for folder in (exports(trained, "tiny"), trained.state / "claims/merged-output/default/merged"):
        assert torch.allclose(logits(folder), ours, atol=1e-4, rtol=0)  # type: ignore[arg-type]
    assert not torch.allclose(logits(base), ours, atol=1e-2, rtol=0)  # type: ignore[arg-type]


def test_full_weights_are_exported_as_they_are(trained: Place) -> None:
    import torch

    ours = logits(trained.output("full"))
    assert torch.equal(logits(exports(trained, "full")), ours)  # type: ignore[arg-type]


def test_shards_tokenizer_and_template(trained: Place) -> None:
    from transformers import AutoTokenizer

    folder = exports(trained, "tiny")
    assert len(list(folder.glob("*.safetensors"))) > 1
    tokenizer = AutoTokenizer.from_pretrained(folder)
    original = AutoTokenizer.from_pretrained(trained.folder / "model")
    messages = [{"role": "user", "content": "How do I descale?"}]
    again = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert again == original.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {p.name for p in folder.iterdir()} - {"manifest.json"}


def test_the_status_tells_what_was_verified(trained: Place) -> None:
    shown = json.loads(trained.finetune("get", "mex", "merged", "-o", "json").stdout)["status"]
    assert shown["phase"] == "Succeeded"
    assert float(shown["verification"]["maxLogitDifference"]) < 1e-4
    same, total = shown["verification"]["identicalTokens"].split("/")
    assert same == total
    assert shown["digest"].startswith("sha256:")


def test_a_wrong_model_is_not_published(
    trained: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from finetune_api.modelexport import ExportFormat
    from finetune_trainer import export as export_module
    from finetune_trainer.exporters import huggingface
    from finetune_trainer.exporters.layout import ExportParts
    from finetune_trainer.verify import VerificationFailed

    step = next(
        p for p in (trained.state / "steps").iterdir() if "-export" in p.name and "tiny-" in p.name
    )
    file = JobFile.model_validate_json((step / "job.json").read_text())
    target = f"file://{tmp_path}/wrong"
    file = file.model_copy(
        update={"output": target, "folders": file.folders.model_copy(update={"base": "/"})}
    )

    def forget_the_adapter(parts: ExportParts, settings: object, folder: Path) -> None:
        bare = ExportParts(parts.base, [], parts.tokenizer)
        huggingface.write(bare, settings, folder)  # type: ignore[arg-type]

    monkeypatch.setitem(export_module.EXPORTERS, ExportFormat.HUGGINGFACE, forget_the_adapter)
    with pytest.raises(
        VerificationFailed, match="computes otherwise than base \\+ adapter"
    ) as raised:
        export_module.export(file)
    assert "not published" in str(raised.value)
    assert not (tmp_path / "wrong").exists()
