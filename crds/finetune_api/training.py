"""Hyper-parameters. An unset value is decided by us, and the decision is told in `status.resolved`."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr

from finetune_api.base import Model, Rule
from finetune_api.optimizers import Optimizer, Scheduler


class Stage(StrEnum):
    """Training stages."""

    SFT = "sft"


class Precision(StrEnum):
    """Arithmetic of the forward and backward pass."""

    AUTO = "auto"
    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"


class ActivationCheckpointing(StrEnum):
    """Whether activations are computed again in the backward pass to save memory."""

    AUTO = "auto"
    NONE = "none"
    FULL = "full"


class EarlyStopping(Model):
    """Stop when the evaluation loss no longer falls."""

    patience: Annotated[int, Field(ge=1, le=1000)] = 3
    """Evaluations without a new best loss after which the run ends, successfully."""


ArgumentValue = StrictBool | StrictInt | StrictFloat | StrictStr
ArgumentName = Annotated[str, Field(max_length=64)]


class Training(Model):
    """Hyper-parameters of a run."""

    cel_rules = (
        Rule(
            "!(has(self.epochs) && has(self.maxSteps))",
            "`epochs` and `maxSteps` exclude each other; remove one",
        ),
    )

    epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Passes over the data. Unset, and no `maxSteps`: 3."""
    max_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Optimizer steps, instead of epochs."""
    global_batch_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Dataset rows per optimizer step over all workers, whatever the packing. Unset: 16, or fewer on
    small data so that a run has at least 20 steps."""
    per_device_batch_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Rows a worker computes at once. Unset: as many as its memory is expected to hold."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Micro-batches per optimizer step. Unset: derived. Given together with the others,
    perDeviceBatchSize x gradientAccumulationSteps x world size must equal globalBatchSize."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    """Peak learning rate. Unset: by stage and method (sft: lora 1e-4, full 1e-5)."""
    scheduler: Scheduler = Scheduler.COSINE
    """Learning-rate schedule after the warm-up."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of all steps in which the learning rate rises from 0 to its peak."""
    optimizer: Optimizer | None = None
    """Optimizer. Unset: `adamw_torch_fused`."""
    precision: Precision = Precision.AUTO
    """`auto`: bf16 where the device computes it natively, else fp32."""
    max_grad_norm: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Gradients are scaled down to this norm; 0 turns clipping off."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Decoupled weight decay."""
    seed: Annotated[int, Field(ge=0, le=2_147_483_647)] = 42
    """Seed of row order, dropout and initialisation."""
    logging_steps: Annotated[int, Field(ge=1, le=100_000)] = 1
    """Optimizer steps between two log lines."""
    eval_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Optimizer steps between two evaluations. Unset: about ten a run, and one at the end."""
    early_stopping: EarlyStopping | None = None
    """Unset: off. Needs evaluation data."""
    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.AUTO
    """`auto`: on GPUs for models above one billion parameters."""
    extra_arguments: Annotated[dict[ArgumentName, ArgumentValue], Field(max_length=64)] | None = (
        None
    )
    """Further arguments of the trainer's own configuration (TRL's SFTConfig). Unknown names, names
    that have a field here, and names the operator owns are refused before anything is started."""
