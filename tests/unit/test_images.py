"""Which jobs' `prepare` needs the image with PyTorch."""

from typing import Any

import pytest

from finetune_api.finetunejob import FineTuneJob
from finetune_api.images import prepare_needs_torch
from finetune_operator.admission import admit
from tests.builders import a_job, merged


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, False),
        ({"method": "full", "lora": None}, False),
        ({"model": {"uri": "hf://org/name"}}, False),
        ({"model": {"uri": "hf://org/name-GGUF"}}, False),
        ({"model": {"uri": "pvc://claim/model.gguf"}}, True),
        ({"model": {"uri": "pvc://claim/model.Q4_K_M.GGUF"}}, True),
        ({"model": {"uri": "https://host/model.gguf?token=a.b"}}, True),
        ({"model": {"uri": "https://host/model?of=model.gguf"}}, False),
        ({"model": {"uri": "package://some_model/weights.gguf"}}, True),
        ({"model": {"allowPickle": True}}, True),
        ({"model": {"trustRemoteCode": True}}, True),
        ({"training": {"maxSteps": 3, "extraArguments": {}}}, False),
        ({"training": {"extraArguments": {"adam_beta2": 0.95}}}, True),
    ],
)
def test_what_needs_torch(changes: dict[str, Any], needed: bool) -> None:
    job = admit(merged(a_job(), {"spec": changes}))
    assert isinstance(job, FineTuneJob)
    assert prepare_needs_torch(job.spec) is needed
