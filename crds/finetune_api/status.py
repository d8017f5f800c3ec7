"""What the operator writes back: conditions, progress, attempts, failures, artifacts."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Message, Number, ShortText, StatusModel, Timestamp


class FailureClass(StrEnum):
    """Whose move it is after a failure."""

    USER_ERROR = "UserError"
    DATA_ERROR = "DataError"
    OUT_OF_MEMORY = "OutOfMemory"
    INFRASTRUCTURE = "Infrastructure"
    STALLED = "Stalled"
    DEADLINE = "Deadline"
    INTERNAL = "Internal"


class Condition(StatusModel):
    """A condition, as in metav1."""

    type: Annotated[str, Field(max_length=64)]
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, Field(max_length=64)]
    message: Message = ""
    last_transition_time: Timestamp
    observed_generation: int = 0


class Progress(StatusModel):
    """How far the running attempt is."""

    summary: Annotated[str, Field(max_length=64)] = ""
    step: int = 0
    total_steps: int = 0
    epoch: Number = "0"
    percent: int = 0
    eta: Annotated[str, Field(max_length=32)] = ""
    eta_seconds: int | None = None
    tokens_per_second: Number | None = None
    last_report_time: Timestamp | None = None


class Metrics(StatusModel):
    """Latest values, as text (floats are not portable in Kubernetes)."""

    loss: Number | None = None
    eval_loss: Number | None = None
    best_eval_loss: Number | None = None
    learning_rate: Number | None = None
    grad_norm: Number | None = None


class LossPoint(StatusModel):
    """One point of a loss history."""

    step: int
    loss: Number


History = Annotated[list[LossPoint], Field(max_length=64)]


class CheckpointState(StatusModel):
    """One checkpoint."""

    step: int
    uri: Annotated[str, Field(max_length=1024)]


class Checkpoints(StatusModel):
    """Checkpoints of the run."""

    latest: CheckpointState | None = None
    best: CheckpointState | None = None
    final: CheckpointState | None = None


class Attempt(StatusModel):
    """One try at a step of the job."""

    step: Annotated[str, Field(max_length=64)] = "train"
    number: int
    start_time: Timestamp
    end_time: Timestamp | None = None
    reason: Annotated[str, Field(max_length=64)] | None = None
    exit_code: int | None = None
    resumed_from_step: int | None = None
    steps_done: int | None = None
    micro_batch_divisor: int = 1


class Failure(StatusModel):
    """Why the job failed, or why its last attempt did."""

    failure_class: Annotated[FailureClass, Field(alias="class")]
    message: Message
    step: Annotated[str, Field(max_length=64)]
    rank: int | None = None
    exit_code: int | None = None
    log_tail: Annotated[str, Field(max_length=2048)] | None = None


class Artifact(StatusModel):
    """A result."""

    kind: Annotated[str, Field(max_length=64)]
    uri: Annotated[str, Field(max_length=1024)]
    size_bytes: int = 0
    digest: Annotated[str, Field(max_length=128)] = ""


class DataCounts(StatusModel):
    """What became of the rows."""

    rows: int = 0
    eval_rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    truncated_rows: int = 0
    dropped_rows: int = 0


class Resolved(StatusModel):
    """Every value a run uses, whoever chose it, and why we chose what was unset."""

    learning_rate: Number
    epochs: Number | None = None
    max_steps: int | None = None
    global_batch_size: int
    per_device_batch_size: int
    gradient_accumulation_steps: int | None = None
    tokens_per_micro_batch: int | None = None
    world_size: int
    device: Literal["cpu", "cuda"]
    precision: Literal["bf16", "fp16", "fp32"]
    packing: Literal["packed", "padded"]
    max_length: int
    optimizer: ShortText
    lora_rank: int | None = None
    lora_alpha: int | None = None
    activation_checkpointing: bool = False
    eval_steps: int | None = None
    checkpoint_steps: int | None = None
    total_steps: int
    model_revision: Annotated[str, Field(max_length=128)] = ""
    dataset_digests: Annotated[dict[str, ShortText], Field(max_length=64)] = {}
    config_digest: Annotated[str, Field(max_length=128)] = ""
    reasons: Annotated[list[Message], Field(max_length=64)] = []


class Estimate(StatusModel):
    """What the run is expected to need."""

    parameters: Number
    trainable: Number
    memory_per_process: Number
    """Gibibytes, e.g. `1.3Gi`."""


class Status(StatusModel):
    """What every kind's status has."""

    observed_generation: int = 0
    phase: Annotated[str, Field(max_length=32)] = "Pending"
    """For people; no code reads it."""
    reason: Annotated[str, Field(max_length=64)] = ""
    message: Message = ""
    conditions: Annotated[list[Condition], Field(max_length=24)] = []
    start_time: Timestamp | None = None
    completion_time: Timestamp | None = None
    attempts: Annotated[list[Attempt], Field(max_length=10)] = []
    """The last ten, of all steps."""
    restarts: int = 0
    """Attempts that failed and count against `failurePolicy.maxRestarts`."""
    failure: Failure | None = None
