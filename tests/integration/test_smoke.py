"""The main job on a tiny model: from a manifest to an adapter, by the command line alone."""

import json

import pytest

from tests.builders import a_dataset, a_job
from tests.conftest import Place


@pytest.mark.timeout(300)
def test_a_manifest_becomes_an_adapter(place: Place) -> None:
    manifest = place.write(
        a_dataset(), a_job(exports=[{"name": "merged", "format": "huggingface"}])
    )
    ran = place.finetune("run", str(manifest), "-o", "json")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    objects = {item["kind"]: item for item in json.loads(ran.stdout)}
    status = objects["FineTuneJob"]["status"]
    assert status["phase"] == "Succeeded"
    assert status["progress"]["summary"] == "6/6"
    assert [a["kind"] for a in status["artifacts"]] == ["adapter", "huggingface"]
    names = {path.name for path in place.output().iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "trainer_log.jsonl", "loss.png",
            "README.md", "manifest.json", "tokenizer.json"} <= names  # fmt: skip
    lines = (place.output() / "trainer_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["current_steps"] for line in lines] == [1, 2, 3, 4, 5, 6]
