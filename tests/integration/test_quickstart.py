"""The README's first command, with the real small model: fewer steps, the same way."""

import json
from pathlib import Path

import pytest

from tests.conftest import Place

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(900)
def test_a_real_model_learns_the_example(tmp_path: Path, warm_python: str) -> None:
    place = Place(tmp_path, warm_python)
    example = str(ROOT / "examples" / "01-support-assistant.yaml")
    few = ["--set", "spec.training.maxSteps=10", "--set", "spec.training.epochs="]
    ran = place.finetune("run", example, *few, OMP_NUM_THREADS="2")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    log = (place.output("brio") / "trainer_log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in log]
    assert losses[0] > 3
    assert losses[-1] < losses[0] - 0.7, "the loss falls visibly"
    for told in (
        "adapter",
        "trainer_log.jsonl",
        "loss.png",
        "Next: finetune local chat brio --compare",
    ):
        assert told in ran.stdout
    question = "My Brio One shows a blinking red light. What should I do?"
    asked = place.finetune(
        "chat", "brio", "--compare", "--max-new-tokens", "12", "--prompt", question
    )
    assert asked.returncode == 0, asked.stderr
    base, tuned = asked.stdout.split("tuned>")
    assert "base>" in base
    assert base.split("base>")[1].strip() != tuned.strip(), "it answers otherwise than before"
