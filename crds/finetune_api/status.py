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
    """What it is about, e.g. `Ready`, `Trained`, `Succeeded`, `Failed`, `Finished`, `Stalled`."""
    status: Literal["True", "False", "Unknown"]
    """`True`: holds; `False`: does not; `Unknown`: not known yet."""
    reason: Annotated[str, Field(max_length=64)]
    """Why, in one word, e.g. `Prepared`."""
    message: Message = ""
    """What `reason` says, in a sentence."""
    last_transition_time: Timestamp
    """When `status` last changed, in UTC; a new reason or message leaves it."""
    observed_generation: int = 0
    """`metadata.generation` of the spec that the condition was set for."""


class Progress(StatusModel):
    """How far the running attempt is."""

    summary: Annotated[str, Field(max_length=64)] = ""
    """Optimizer steps done and in all, e.g. `40/120`."""
    step: int = 0
    """Optimizer steps done since the run's start, over all attempts."""
    total_steps: int = 0
    """Optimizer steps of the whole run."""
    epoch: Number = "0"
    """Passes over the data so far, with two decimals, e.g. `1.25`."""
    percent: int = 0
    """`step` in percent of `totalSteps`, rounded down."""
    eta: Annotated[str, Field(max_length=32)] = ""
    """Time left, e.g. `1h02m`; empty until the attempt has done a step."""
    eta_seconds: int | None = None
    """Seconds left, from this attempt's mean time per step, evaluations and saving included."""
    tokens_per_second: Number | None = None
    """Tokens a second since the attempt began, over all processes, without padding."""
    last_report_time: Timestamp | None = None
    """When the trainer made this report, in UTC."""
    activity: Annotated[str, Field(max_length=32)] = ""
    """`Loading`, `Training`, `Evaluating`, `Publishing`."""
    attempt: int = 0
    """Number of the attempt at training that reported."""
    sequence: int = 0
    """Number of its report; of one attempt a later report has a higher one."""
    resumed_from_step: int | None = None
    """Optimizer step of the checkpoint that attempt went on from. Unset: from the start."""


class Metrics(StatusModel):
    """Latest values, as text (floats are not portable in Kubernetes)."""

    loss: Number | None = None
    """Loss per trained token, mean of the steps since the log line before."""
    eval_loss: Number | None = None
    """Loss per trained token of all evaluation rows, at the last evaluation."""
    best_eval_loss: Number | None = None
    """Lowest evaluation loss of the run so far."""
    learning_rate: Number | None = None
    """Learning rate at the last log line."""
    grad_norm: Number | None = None
    """Norm of the gradients over all weights at the last log line, before clipping."""


class LossPoint(StatusModel):
    """One point of a loss history."""

    step: int
    """Optimizer step at which it was logged, counted from the run's start."""
    loss: Number
    """Loss per trained token, with four decimals."""


History = Annotated[list[LossPoint], Field(max_length=64)]


class CheckpointState(StatusModel):
    """One checkpoint."""

    step: int
    """Optimizer steps done when it was saved."""
    uri: Annotated[str, Field(max_length=1024)]
    """Folder: of checkpoints within the run's working files, of the final one the output."""
    time: Timestamp | None = None
    """When it was complete, in UTC."""


class Checkpoints(StatusModel):
    """Checkpoints of the run."""

    latest: CheckpointState | None = None
    """Newest complete one that the last reporting attempt saved."""
    best: CheckpointState | None = None
    """Newest one that attempt saved at a new lowest evaluation loss. Unset: none."""
    final: CheckpointState | None = None
    """The result: the output, and the step at which training ended."""


class Attempt(StatusModel):
    """One try at a step of the job."""

    step: Annotated[str, Field(max_length=64)] = "train"
    """`prepare`, `train`, `export-<name>`; of other kinds `validate`, `export`."""
    number: int
    """Number of the attempt at this step, from 1."""
    start_time: Timestamp
    """When the attempt was decided on, in UTC."""
    end_time: Timestamp | None = None
    """When its processes ended, in UTC. Unset: not ended, or stopped at the deadline."""
    reason: Annotated[str, Field(max_length=64)] | None = None
    """How it ended: `Completed`, `Stopped`, `Suspended`, or the class of its failure."""
    exit_code: int | None = None
    """Exit code of its first process; 0: done. Unset: none was recorded."""
    resumed_from_step: int | None = None
    """Optimizer step of the checkpoint it went on from. Unset: from the start."""
    steps_done: int | None = None
    """Optimizer step that its last report told, counted from the run's start."""
    micro_batch_divisor: int = 1
    """What `perDeviceBatchSize` was divided by: 2 after memory ran out, else 1."""


class Failure(StatusModel):
    """Why the job failed, or why its last attempt did."""

    failure_class: Annotated[FailureClass, Field(alias="class")]
    """Whose move it is; from the step's exit code, where a step ended."""
    message: Message
    """What went wrong and what to do."""
    step: Annotated[str, Field(max_length=64)]
    """Step that failed, as in `attempts`; `resolve`: refused before the step was started."""
    rank: int | None = None
    """Number of the process that failed, from 0. Unset: not known."""
    exit_code: int | None = None
    """Exit code of the step's first process. Unset: the operator itself ended the job."""
    log_tail: Annotated[str, Field(max_length=2048)] | None = None
    """Last 2048 bytes of the step's log."""


class Usage(StatusModel):
    """What training used, over all its attempts."""

    gpu_seconds: int = 0
    """GPUs x seconds that its pods ran."""
    lost_gpu_seconds: int = 0
    """Those of `gpuSeconds` whose work had to be done again: from the last checkpoint to a failure."""


class Artifact(StatusModel):
    """A result."""

    kind: Annotated[str, Field(max_length=64)]
    """`adapter` or `model`, the result of training; of an export its format."""
    uri: Annotated[str, Field(max_length=1024)]
    """Location of its folder."""
    size_bytes: int = 0
    """Bytes of all its files."""
    digest: Annotated[str, Field(max_length=128)] = ""
    """`sha256:` over names, sizes and SHA-256 of its files; empty for a result of training."""


class DataCounts(StatusModel):
    """What became of the rows."""

    rows: int = 0
    """Rows to train on, after dropping, `data.maxSamples` and `data.validationSplit`."""
    eval_rows: int = 0
    """Rows to evaluate on."""
    tokens: int = 0
    """Tokens of the rows to train on, once each, after truncation."""
    trained_tokens: int = 0
    """Those of `tokens` that have a loss."""
    truncated_rows: int = 0
    """Rows cut to `data.maxLength`, of training and evaluation data."""
    dropped_rows: int = 0
    """Rows left out as too long (`overlong: drop`) or without a trained token."""


class Resolved(StatusModel):
    """Every value a run uses, whoever chose it, and why we chose what was unset."""

    learning_rate: Number
    """Peak learning rate."""
    epochs: Number | None = None
    """Passes over the data. Unset: `maxSteps` was given."""
    max_steps: int | None = None
    """Optimizer steps, as given. Unset: `epochs` decides."""
    global_batch_size: int
    """Dataset rows per optimizer step over all processes."""
    per_device_batch_size: int
    """Rows a process computes at once; an attempt may divide it, see `attempts`."""
    gradient_accumulation_steps: int | None = None
    """Micro-batches per optimizer step. Unset with packing: as many as the rows fill."""
    tokens_per_micro_batch: int | None = None
    """Most tokens of a packed micro-batch: `perDeviceBatchSize` x `maxLength`."""
    world_size: int
    """Processes that train."""
    device: Literal["cpu", "cuda"]
    """What the processes compute on."""
    precision: Literal["bf16", "fp16", "fp32"]
    """Arithmetic of the forward and backward pass."""
    packing: Literal["packed", "padded"]
    """`packed`: rows laid end to end; `padded`: rows filled up to the longest."""
    max_length: int
    """Longest row, in tokens."""
    optimizer: ShortText
    """Optimizer."""
    lora_rank: int | None = None
    """Rank of the adapter. Unset: `method: full`."""
    lora_alpha: int | None = None
    """Alpha of the adapter; with the rank it makes the scale. Unset: `method: full`."""
    activation_checkpointing: bool = False
    """Whether activations are computed again in the backward pass."""
    eval_steps: int | None = None
    """Optimizer steps between two evaluations. Unset: no evaluation data."""
    checkpoint_steps: int | None = None
    """Optimizer steps between two checkpoints. Unset: `checkpoint.everyMinutes` decides."""
    total_steps: int
    """Optimizer steps of the run: `maxSteps`, or what `epochs` amount to."""
    model_revision: Annotated[str, Field(max_length=128)] = ""
    """Commit of the base model on the hub; elsewhere `sha256:` over its files."""
    dataset_digests: Annotated[dict[str, ShortText], Field(max_length=64)] = {}
    """`status.digest` of each registration of `spec.datasets`, by its name."""
    config_digest: Annotated[str, Field(max_length=128)] = ""
    """`sha256:` over all of the spec that changes the result."""
    reasons: Annotated[list[Message], Field(max_length=64)] = []
    """One line for each value that we chose: the field, the value, why."""


class Estimate(StatusModel):
    """What the run is expected to need."""

    parameters: Number
    """Weights of the base model, counted in its files, e.g. `135M`."""
    trainable: Number
    """Weights that are trained, e.g. `4.88M`; with LoRA estimated from the layers' sizes."""
    memory_per_process: Number
    """Gibibytes, e.g. `1.3Gi`."""


class Status(StatusModel):
    """What every kind's status has."""

    observed_generation: int = 0
    """`metadata.generation` of the spec that this status is about."""
    phase: Annotated[str, Field(max_length=32)] = "Pending"
    """For people; no code reads it."""
    reason: Annotated[str, Field(max_length=64)] = ""
    """Why it is in this phase, in one word, e.g. `Training`; of a failure its class."""
    message: Message = ""
    """What `reason` says, in a sentence."""
    conditions: Annotated[list[Condition], Field(max_length=24)] = []
    """For programs, one of a type; `Finished` is true once it ended, well or not."""
    start_time: Timestamp | None = None
    """When the operator took up this run, validation or export, in UTC."""
    completion_time: Timestamp | None = None
    """When it ended, well or not, in UTC. Unset: not ended."""
    attempts: Annotated[list[Attempt], Field(max_length=10)] = []
    """The last ten, of all steps."""
    restarts: int = 0
    """Attempts that failed and count against `failurePolicy.maxRestarts`."""
    failure: Failure | None = None
    """Why it failed, or why its last attempt did. Unset: nothing failed, or it was overcome."""
