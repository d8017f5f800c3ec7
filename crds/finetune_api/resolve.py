"""Decides every value a user left unset, and says why. Pure: the same facts give the same run."""

import hashlib
import json
import math
from dataclasses import dataclass, field, replace
from typing import TypeVar

from finetune_api.adapters import Lora, Method
from finetune_api.contract import PrepareResult
from finetune_api.data import Data, Packing
from finetune_api.finetunejob import Attention, FineTuneJobSpec
from finetune_api.optimizers import Optimizer
from finetune_api.status import Resolved
from finetune_api.training import ActivationCheckpointing, Precision, Training

T = TypeVar("T")

LEARNING_RATES = {Method.LORA: 1e-4, Method.FULL: 1e-5}
"""Stage sft. LoRA wants about ten times the rate of full fine-tuning (arXiv:2405.09673, section 4)."""
MICRO_BATCH_TOKENS = {"cpu": 2048, "cuda": 8192}
LEAST_STEPS = 20
DEFAULT_BATCH = 16
DEFAULT_LENGTH = 2048
LARGE_MODEL_PARAMETERS = 1_000_000_000
NOT_IN_DIGEST = {
    "suspend", "activeDeadlineSeconds", "ttlSecondsAfterFinished", "failurePolicy", "output",
    "rerun", "exports", "workers", "checkpoint", "scheduling", "storage",
}  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """What a job's processes run on."""

    gpus: int = 0
    gpus_have_bf16: bool = False
    cpu_has_bf16: bool = False

    @property
    def device(self) -> str:
        """Return torch's name of the device."""
        return "cuda" if self.gpus else "cpu"

    @property
    def has_bf16(self) -> bool:
        """Tell whether the device computes bf16 natively."""
        return self.gpus_have_bf16 if self.gpus else self.cpu_has_bf16


@dataclass
class Choices:
    """Values and the reasons for those that were not given."""

    reasons: list[str] = field(default_factory=list)

    def given_or(self, given: T | None, chosen: T, *, path: str, why: str) -> T:
        """Return the user's value, or ours with its reason noted."""
        if given is not None:
            return given
        self.reasons.append(f"`{path}` = {chosen}: {why}")
        return chosen


def config_digest(spec: FineTuneJobSpec) -> str:
    """Return the digest of everything in a spec that changes the result."""
    body = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    kept = {key: value for key, value in body.items() if key not in NOT_IN_DIGEST}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def machine_of(spec: FineTuneJobSpec, *, here: Machine | None) -> Machine:
    """Return what the job runs on; `here` is this computer under `finetune local`."""
    asked = spec.workers.gpus_per_node if spec.workers else None
    if asked is None:
        return here or Machine(gpus=1, gpus_have_bf16=True)
    if here is None:
        return Machine(gpus=asked, gpus_have_bf16=True)
    return replace(here, gpus=asked)


def world_size(spec: FineTuneJobSpec, machine: Machine) -> int:
    """Return the number of training processes."""
    asked = spec.workers.processes_per_node if spec.workers else None
    return asked or max(machine.gpus, 1)


def resolve(
    spec: FineTuneJobSpec,
    prepared: PrepareResult,
    *,
    dataset_digests: dict[str, str],
    here: Machine | None,
) -> Resolved:
    """Return every value of a run."""
    choices, training = Choices(), spec.training or Training()
    machine = machine_of(spec, here=here)
    # Where it was prepared it is trained, or on a node like that.
    machine = replace(machine, cpu_has_bf16=machine.cpu_has_bf16 or prepared.cpu_has_bf16)
    world, rows = world_size(spec, machine), prepared.data.rows
    length = _max_length(spec.data or Data(), prepared.model.max_length, choices)
    batch = _global_batch(training, rows, world, choices)
    per_device = _per_device(training, batch, world, length, machine, choices)
    if training.max_steps is None:
        epochs = choices.given_or(training.epochs, 3.0, path="training.epochs", why="the default")
        total = math.ceil(epochs * math.ceil(rows / batch))
    else:
        epochs, total = None, training.max_steps
    packed = _is_packed(spec, choices)
    rank, alpha = _lora(spec, choices)
    return Resolved(
        learning_rate=_learning_rate(spec, training, choices),
        epochs=None if epochs is None else f"{epochs:g}",
        max_steps=training.max_steps,
        global_batch_size=batch,
        per_device_batch_size=per_device,
        gradient_accumulation_steps=None if packed else math.ceil(batch / (per_device * world)),
        tokens_per_micro_batch=per_device * length,
        world_size=world,
        device="cuda" if machine.gpus else "cpu",
        precision=_precision(training, machine, choices),
        packing="packed" if packed else "padded",
        max_length=length,
        optimizer=choices.given_or(
            training.optimizer,
            Optimizer.ADAMW_TORCH_FUSED,
            path="training.optimizer",
            why="AdamW in one kernel",
        ),
        lora_rank=rank,
        lora_alpha=alpha,
        activation_checkpointing=_checkpointing(training, prepared.model.parameters, machine),
        eval_steps=_every(training.eval_steps, total) if prepared.data.eval_rows else None,
        checkpoint_steps=_checkpoint_steps(spec, total),
        total_steps=total,
        model_revision=prepared.model.revision,
        dataset_digests=dataset_digests,
        config_digest=config_digest(spec),
        reasons=choices.reasons,
    )  # fmt: skip


def divided(resolved: Resolved, divisor: int) -> Resolved:
    """Return the values of an attempt whose micro-batch is divided, since memory ran out before."""
    per_device = max(resolved.per_device_batch_size // divisor, 1)
    accumulation = resolved.gradient_accumulation_steps
    if accumulation is not None:
        accumulation = math.ceil(resolved.global_batch_size / (per_device * resolved.world_size))
    return resolved.model_copy(
        update={
            "per_device_batch_size": per_device,
            "gradient_accumulation_steps": accumulation,
            "tokens_per_micro_batch": per_device * resolved.max_length,
        }
    )


def _lora(spec: FineTuneJobSpec, choices: Choices) -> tuple[int | None, int | None]:
    if spec.method is not Method.LORA:
        return None, None
    lora = spec.lora or Lora()
    rank = choices.given_or(lora.rank, 16, path="lora.rank", why="enough for most tasks")
    why = "2 x rank keeps the scale at 2 for every rank"
    return rank, choices.given_or(lora.alpha, 2 * rank, path="lora.alpha", why=why)


def _learning_rate(spec: FineTuneJobSpec, training: Training, choices: Choices) -> str:
    why = f"stage {spec.stage}, method {spec.method}"
    chosen = LEARNING_RATES[spec.method]
    return repr(
        choices.given_or(training.learning_rate, chosen, path="training.learningRate", why=why)
    )


def _max_length(data: Data, limit: int | None, choices: Choices) -> int:
    chosen = min(DEFAULT_LENGTH, limit or DEFAULT_LENGTH)
    return choices.given_or(
        data.max_length, chosen, path="data.maxLength", why="the default, within the model's limit"
    )


def _global_batch(training: Training, rows: int, world: int, choices: Choices) -> int:
    if training.global_batch_size:
        return training.global_batch_size
    if training.per_device_batch_size and training.gradient_accumulation_steps:
        return training.per_device_batch_size * training.gradient_accumulation_steps * world
    wanted = DEFAULT_BATCH
    if training.max_steps is None:
        epochs = training.epochs or 3.0
        while wanted > 1 and math.ceil(epochs * math.ceil(rows / wanted)) < LEAST_STEPS:
            wanted //= 2
    unit = world * (training.per_device_batch_size or training.gradient_accumulation_steps or 1)
    chosen = max(wanted // unit, 1) * unit
    return choices.given_or(
        None,
        chosen,
        path="training.globalBatchSize",
        why=f"at least {LEAST_STEPS} steps on {rows} rows",
    )


def _per_device(
    training: Training, batch: int, world: int, length: int, machine: Machine, choices: Choices
) -> int:  # fmt: skip
    share = max(batch // world, 1)
    if training.gradient_accumulation_steps and not training.per_device_batch_size:
        return max(math.ceil(share / training.gradient_accumulation_steps), 1)
    tokens = MICRO_BATCH_TOKENS[machine.device]
    chosen = min(share, max(tokens // length, 1))
    return choices.given_or(
        training.per_device_batch_size,
        chosen,
        path="training.perDeviceBatchSize",
        why=f"about {tokens} tokens at once on {machine.device}; halved if memory runs out",
    )


def _is_packed(spec: FineTuneJobSpec, choices: Choices) -> bool:
    packing = (spec.data or Data()).packing
    if packing is not Packing.AUTO:
        return packing is Packing.PACKED
    packed = spec.model.attention is not Attention.EAGER
    choices.reasons.append(
        f"`data.packing` = {'packed' if packed else 'padded'}: "
        + ("no padding is computed, attention stays exact" if packed else "eager attention cannot")
    )
    return packed


def _precision(training: Training, machine: Machine, choices: Choices) -> str:
    if training.precision is not Precision.AUTO:
        return str(training.precision)
    chosen = "bf16" if machine.has_bf16 else "fp32"
    known = "computes" if machine.has_bf16 else "is not known to compute"
    why = f"this {machine.device} device {known} bf16 natively"
    return choices.given_or(None, chosen, path="training.precision", why=why)


def _checkpointing(training: Training, parameters: int, machine: Machine) -> bool:
    if training.activation_checkpointing is ActivationCheckpointing.AUTO:
        return machine.gpus > 0 and parameters >= LARGE_MODEL_PARAMETERS
    return training.activation_checkpointing is ActivationCheckpointing.FULL


def _every(given: int | None, total: int) -> int:
    return given or max(math.ceil(total / 10), 1)


def _checkpoint_steps(spec: FineTuneJobSpec, total: int) -> int | None:
    checkpoint = spec.checkpoint
    if checkpoint and checkpoint.every_minutes:
        return None
    return (checkpoint.every_steps if checkpoint else None) or min(
        max(math.ceil(total / 10), 1), 500
    )
