"""ModelExport: a trained model in the form that others use."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from finetune_api.base import Model, Name, Rule, StatusModel
from finetune_api.meta import Metadata
from finetune_api.status import Status
from finetune_api.storage import Location, OutputUri, Retain


class ExportFormat(StrEnum):
    """Formats of an exported model."""

    HUGGINGFACE = "huggingface"


class ExportPrecision(StrEnum):
    """Number format of the exported weights."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class HuggingFaceExport(Model):
    """Settings of `format: huggingface`."""

    max_shard_size: Annotated[str, Field(pattern=r"^[1-9][0-9]*(KB|MB|GB)$", max_length=16)] = "5GB"
    """Largest size of one safetensors file, in decimal KB, MB or GB."""
    dtype: ExportPrecision = ExportPrecision.AUTO
    """Number format of the weights; `auto` keeps the base model's."""


class Verify(Model):
    """The check that an export must pass before it is called done."""

    prompts: Annotated[int, Field(ge=1, le=256)] = 4
    """Prompts on which the exported model's logits are compared with base + adapter."""


class CheckpointChoice(StrEnum):
    """Which weights of a job."""

    FINAL = "final"


class JobReference(Model):
    """Weights of a FineTuneJob of the same namespace; waits until it has trained."""

    name: Name
    """Name of the FineTuneJob."""
    checkpoint: CheckpointChoice = CheckpointChoice.FINAL
    """`final`: the weights at the end of training."""


ADAPTERS_NEED_MODEL = Rule(
    "!has(self.adapters) || has(self.model)",
    "`adapters` needs `model`, the base they were trained on; a `jobRef` brings its own",
)


class ExportSource(Model):
    """What is exported: a job's result, or a model with adapters."""

    cel_rules = (
        Rule(
            "has(self.jobRef) != has(self.model)",
            "set exactly one of `jobRef` and `model`",
        ),
        ADAPTERS_NEED_MODEL,
    )

    job_ref: JobReference | None = None
    """The FineTuneJob whose result is exported."""
    model: Location | None = None
    """A base model."""
    adapters: Annotated[list[Location], Field(min_length=1, max_length=8)] | None = None
    """Adapters, merged one after the other into `model`."""


class ExportSettings(Model):
    """How a model is exported."""

    format: ExportFormat
    """`huggingface`: base and adapter merged into one folder of safetensors, with tokenizer and chat
    template; loads in transformers and vLLM."""
    huggingface: HuggingFaceExport | None = None
    """Settings of `format: huggingface`. Unset: 5GB shards in the base model's number format."""
    verify: Verify | None = None
    """Unset: 4 prompts."""


class Destination(Model):
    """Where the exported model goes: `<uri>/<namespace>/<name>/`."""

    uri: OutputUri
    """`pvc://claim/path`, or `file://path` under `finetune local`."""


class JobExport(ExportSettings):
    """An export of a FineTuneJob's own result."""

    name: Name
    """Names the export within the job; its folder is `<job output>/../exports/<name>`."""


class ModelExportSpec(ExportSettings):
    """What to export, how, and where to."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.source == oldSelf.source && self.format == oldSelf.format"
            " && has(self.huggingface) == has(oldSelf.huggingface)"
            " && (!has(self.huggingface) || self.huggingface == oldSelf.huggingface)"
            " && has(self.destination) == has(oldSelf.destination)"
            " && (!has(self.destination) || self.destination == oldSelf.destination)",
            "a ModelExport never changes but for `retain`; create another one",
        ),
    )

    source: ExportSource
    """What is exported."""
    destination: Destination | None = None
    """Unset: a claim of the export's own, `<name>-output`."""
    retain: Retain = Retain.RETAIN
    """`Retain` keeps the exported model when the ModelExport is deleted."""


class Verification(StatusModel):
    """How the exported model compares with the trained one."""

    max_logit_difference: Annotated[str, Field(max_length=32)]
    """Largest difference of a logit from base + adapter, over all prompts, in fp32."""
    identical_tokens: Annotated[str, Field(max_length=32)]
    """Positions at which both find the same token likeliest, e.g. `52/52`."""


class ModelExportStatus(Status):
    """State of a ModelExport."""

    uri: Annotated[str, Field(max_length=1024)] = ""
    """Location of the exported model's folder."""
    size_bytes: int = 0
    """Bytes of all its files."""
    digest: Annotated[str, Field(max_length=128)] = ""
    """`sha256:` over names, sizes and SHA-256 of its files."""
    files: int = 0
    """Number of its files."""
    verification: Verification | None = None
    """How it compares with the trained model; it is published only if close enough."""


class ModelExport(Model):
    """A trained model, exported and verified."""

    metadata: Metadata
    spec: ModelExportSpec
    status: ModelExportStatus = ModelExportStatus()
