"""What operator and trainer agree on: the job file, results, exit codes, file names.

The operator writes one immutable job file a step; the trainer reads it with the same class and
answers with one termination message. Neither imports the other.
"""

from enum import IntEnum
from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Message, StatusModel
from finetune_api.datasetregistration import (
    Columns,
    DatasetFormat,
    DatasetRegistrationSpec,
    RowError,
    Tags,
    TokenStatistics,
)
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.modelexport import ExportSettings, Verification
from finetune_api.status import (
    Artifact,
    Checkpoints,
    DataCounts,
    FailureClass,
    History,
    Metrics,
    Progress,
    Resolved,
)
from finetune_api.storage import Location

CONTRACT_VERSION = 1

JOB_FILE = "job.json"
PROGRESS_FILE = "progress.json"
TERMINATION_FILE = "termination.json"
LOG_FILE = "log.txt"
MANIFEST_FILE = "manifest.json"
TRAINER_LOG_FILE = "trainer_log.jsonl"
PLOT_FILE = "loss.png"
LOG_TAIL_BYTES = 2048
HISTORY_POINTS = 64


class ExitCode(IntEnum):
    """What a step's first process exits with; numbers as in sysexits.h where it has one."""

    DONE = 0
    USER_ERROR = 64
    DATA_ERROR = 65
    OUT_OF_MEMORY = 69
    BUG = 70
    INFRASTRUCTURE = 74
    EVICTED = 75
    STALLED = 76


FAILURE_CLASSES = {
    ExitCode.USER_ERROR: FailureClass.USER_ERROR,
    ExitCode.DATA_ERROR: FailureClass.DATA_ERROR,
    ExitCode.OUT_OF_MEMORY: FailureClass.OUT_OF_MEMORY,
    ExitCode.BUG: FailureClass.INTERNAL,
    ExitCode.INFRASTRUCTURE: FailureClass.INFRASTRUCTURE,
    ExitCode.EVICTED: FailureClass.INFRASTRUCTURE,
    ExitCode.STALLED: FailureClass.STALLED,
}

StepName = Literal["validate", "prepare", "train", "export", "preview", "chat"]


class Receiver(StatusModel):
    """Where a step sends its snapshots while it runs."""

    url: str
    """Address, by HTTPS."""
    ca_file: str
    """Certificates of the authorities that may have signed the receiver's."""
    token_file: str
    """Token of this pod; the kubelet renews it."""


class Folders(StatusModel):
    """Where a step finds things; mount points on a cluster, folders under `finetune local`."""

    step: str = ""
    """Job file, log, progress and termination message of this step."""
    cache: str = ""
    """Models and prepared data, content-addressed, shared by jobs."""
    work: str = ""
    """Checkpoints of the run; `attempt-<n>` folders below."""
    claims: str = ""
    """`pvc://claim/path` is `<claims>/claim/path`."""
    secrets: str = ""
    """`<secrets>/<name>/<key>` files."""
    base: str = ""
    """Folder that relative `file://` locations start from; empty: `file://` is refused."""
    termination_log: str = ""
    """Where the last word also goes, for the kubelet to read; empty: nowhere."""


class DatasetInput(StatusModel):
    """A registration, as validated."""

    name: str
    spec: DatasetRegistrationSpec
    digest: str
    format: DatasetFormat
    columns: Columns | None = None
    tags: Tags | None = None
    invalid_rows: int = 0
    base: str = ""


class PreparedModel(StatusModel):
    """A base model in the cache."""

    folder: str
    """Relative to the cache."""
    revision: str
    parameters: int
    max_length: int | None = None


class PrepareResult(StatusModel):
    """What `prepare` found and made."""

    model: PreparedModel
    data_folder: str
    """Relative to the cache."""
    data: DataCounts
    memory_bytes: int
    trainable_parameters: int
    cpu_has_bf16: bool = False
    """Whether the processor that prepared computes bf16 natively."""
    adopted: list[Artifact] | None = None
    """The output that is already there, made from the same inputs."""
    adopted_steps: int = 0


class ValidateResult(StatusModel):
    """What `validate` found."""

    format: str
    purpose: str
    rows: int
    invalid_rows: int
    errors: Annotated[list[RowError], Field(max_length=10)] = []
    columns: Columns | None = None
    tags: Tags | None = None
    size_bytes: int
    digest: str
    tokens: TokenStatistics | None = None
    preview: list[Message] = []


class TrainResult(StatusModel):
    """What `train` left behind."""

    steps: int
    total_steps: int
    stopped_early: bool = False
    artifacts: list[Artifact] = []


class ExportResult(StatusModel):
    """What `export` made."""

    artifact: Artifact
    files: int
    verification: Verification


class ExportInput(StatusModel):
    """What `export` exports and where to."""

    settings: ExportSettings
    model: Location | None = None
    """The base model, when no prepared one is given."""
    model_base: str = ""
    prepared: PreparedModel | None = None
    adapters: list[Location] = []
    full_model: Location | None = None
    """A fully trained model, instead of adapters."""
    destination: str
    """Location of the folder to make."""


class Snapshot(StatusModel):
    """A complete report of progress: these fields of a job's status. A later one replaces an earlier."""

    progress: Progress
    metrics: Metrics = Metrics()
    loss_history: History = []
    eval_history: History = []
    checkpoints: Checkpoints = Checkpoints()


class ErrorReport(StatusModel):
    """Why a step failed."""

    message: Message
    rank: int | None = None
    log_tail: Annotated[str, Field(max_length=LOG_TAIL_BYTES)] = ""


class Termination(StatusModel):
    """The last word of a step."""

    contract_version: int = CONTRACT_VERSION
    exit_code: int
    stop_was_requested: bool = False
    """The operator itself asked for the stop: it is no failure of the attempt."""
    error: ErrorReport | None = None
    validated: ValidateResult | None = None
    prepared: PrepareResult | None = None
    trained: TrainResult | None = None
    exported: ExportResult | None = None
    snapshot: Snapshot | None = None


class JobFile(StatusModel):
    """Everything a step needs to know; written once, never changed."""

    contract_version: int = CONTRACT_VERSION
    step: StepName
    namespace: str
    name: str
    uid: str
    run: int = 1
    attempt: int = 1
    micro_batch_divisor: int = 1
    """What the micro-batch of `resolved` is divided by, since memory ran out before."""
    folders: Folders = Folders()
    """Filled in by whoever runs the step."""
    receiver: Receiver | None = None
    """Who takes snapshots. Unset: whoever started the step reads them from its folder."""
    registration: DatasetInput | None = None
    job: FineTuneJobSpec | None = None
    resolved: Resolved | None = None
    datasets: list[DatasetInput] = []
    eval_datasets: list[DatasetInput] = []
    prepared: PrepareResult | None = None
    export: ExportInput | None = None
    output: str = ""
    """Location of the run's output folder."""
    takes_over: bool = False
    """Unfinished output of an earlier object of the same name may be taken over: it has ended."""
    config_digest: str = ""
    devices: int = 0
    """GPUs of this step; 0 = CPU."""
    processes: int = 1
    stall_timeout_seconds: int = 1800
    grace_period_seconds: int = 110
    options: dict[str, str | int | bool | None] = {}
    """Of interactive steps (`preview`, `chat`) only."""
