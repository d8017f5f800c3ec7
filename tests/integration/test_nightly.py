"""Every example, whole, with the real small model."""

import json
from pathlib import Path

import pytest

from tests.conftest import Place

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_to_its_end(
    example: Path, tmp_path: Path, warm_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.conftest.RUN_TIMEOUT_SECONDS", 3500)
    place = Place(tmp_path, warm_python)
    ran = place.finetune("run", str(example), "-o", "json", OMP_NUM_THREADS="2")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for resource in json.loads(ran.stdout):
        assert resource["status"]["phase"] in ("Succeeded", "Ready")
        history = resource["status"].get("lossHistory")
        if history:
            assert float(history[-1]["loss"]) < float(history[0]["loss"]) - 0.5
