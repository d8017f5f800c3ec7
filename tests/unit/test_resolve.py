"""Unset values: what is decided, why, and that given values are kept."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.contradictions import contradictions
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.objects import parse
from finetune_api.resolve import Machine, config_digest, divided, resolve
from tests.builders import a_job
from tests.fakes.world import PREPARED


def spec_of(**changes: object) -> FineTuneJobSpec:
    spec = parse(a_job(**changes)).spec
    assert isinstance(spec, FineTuneJobSpec)
    return spec


def prepared(rows: int, *, parameters: int = 70_000, max_length: int | None = 512):
    data = PREPARED.data.model_copy(update={"rows": rows})
    model = PREPARED.model.model_copy(update={"parameters": parameters, "max_length": max_length})
    return PREPARED.model_copy(update={"data": data, "model": model})


def resolved(rows: int = 240, here: Machine | None = None, **changes: object):
    given_ = {"training": None, "workers": None, "checkpoint": None, **changes}
    return resolve(spec_of(**given_), prepared(rows), dataset_digests={}, here=here or Machine())


def test_the_smallest_job_is_a_good_one() -> None:
    values = resolved(lora=None)
    assert values.learning_rate == "0.0001"
    assert (values.lora_rank, values.lora_alpha) == (16, 32)
    assert values.epochs == "3"
    assert values.total_steps >= 20
    assert values.max_length == 512, "the model's limit is below the default"
    assert values.packing == "packed"
    reasons = "\n".join(values.reasons)
    for path in ("training.learningRate", "lora.alpha", "data.packing", "training.precision"):
        assert f"`{path}` =" in reasons


@pytest.mark.parametrize("rows", [20, 60, 240, 5000])
def test_small_data_still_gives_twenty_steps(rows: int) -> None:
    assert resolved(rows).total_steps >= 20
    assert resolved(rows).global_batch_size <= 16


def test_full_fine_tuning_has_its_own_rate() -> None:
    values = resolved(method="full", lora=None)
    assert values.learning_rate == "1e-05"
    assert values.lora_rank is None


@pytest.mark.parametrize(
    ("here", "workers", "precision", "device"),
    [
        (Machine(), None, "fp32", "cpu"),
        (Machine(cpu_has_bf16=True), None, "bf16", "cpu"),
        (Machine(gpus=2, gpus_have_bf16=True), None, "bf16", "cuda"),
        (Machine(gpus=1), None, "fp32", "cuda"),
        (Machine(gpus=2, gpus_have_bf16=True), {"gpusPerNode": 0}, "fp32", "cpu"),
    ],
)
def test_the_machine_decides_the_precision(
    here: Machine, workers: dict[str, int] | None, precision: str, device: str
) -> None:
    values = resolved(here=here, workers=workers)
    assert (values.precision, values.device) == (precision, device)


def test_memory_halves_the_micro_batch_and_nothing_else() -> None:
    whole = resolved()
    half = divided(whole, 2)
    assert half.per_device_batch_size == max(whole.per_device_batch_size // 2, 1)
    assert half.global_batch_size == whole.global_batch_size
    assert half.total_steps == whole.total_steps


def test_the_digest_follows_what_changes_the_result() -> None:
    base = config_digest(spec_of())
    for same in (
        {"suspend": True},
        {"rerun": 3},
        {"output": {"uri": "pvc://x"}},
        {"failurePolicy": {"maxRestarts": 9}},
    ):
        assert config_digest(spec_of(**same)) == base
    for other in ({"lora": {"rank": 8}}, {"training": {"seed": 1}}, {"data": {"maxLength": 64}}):
        assert config_digest(spec_of(**other)) != base


numbers = st.one_of(st.none(), st.integers(1, 64))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    numbers,
    numbers,
    numbers,
    st.integers(1, 4),
    st.integers(1, 500),
    st.sampled_from(["auto", "padded"]),
)
def test_what_is_not_refused_fits_together(
    batch: int | None,
    per_device: int | None,
    accumulation: int | None,
    world: int,
    rows: int,
    packing: str,
) -> None:
    training = {
        "globalBatchSize": batch, "perDeviceBatchSize": per_device, "gradientAccumulationSteps": accumulation,
    }  # fmt: skip
    training = {name: value for name, value in training.items() if value}
    spec = spec_of(training=None, workers={"gpusPerNode": 0, "processesPerNode": world})
    body = json.loads(spec.model_dump_json(by_alias=True, exclude_none=True))
    spec = FineTuneJobSpec.model_validate(
        {**body, "training": training, "data": {"packing": packing}}
    )
    if contradictions(spec, here=Machine()):
        return
    values = resolve(spec, prepared(rows), dataset_digests={}, here=Machine())
    assert values.global_batch_size % world == 0
    assert values.global_batch_size == (batch or values.global_batch_size)
    assert values.per_device_batch_size == (per_device or values.per_device_batch_size)
    if values.gradient_accumulation_steps is not None:
        covered = values.per_device_batch_size * values.gradient_accumulation_steps * world
        assert covered >= values.global_batch_size
        if accumulation:
            assert values.gradient_accumulation_steps == accumulation
