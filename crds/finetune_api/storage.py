"""Where models, data and outputs live: locations, secrets, output, checkpoints."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from finetune_api.base import Model, Name, Rule, ShortText
from finetune_api.pods import ObjectName, Quantity

SCHEMES = ("hf", "pvc", "file", "package", "https", "s3")
URI_PATTERN = rf"^({'|'.join(SCHEMES)})://[^\s]+$"
OUTPUT_URI_PATTERN = r"^(pvc|file)://[^\s]+$"
Uri = Annotated[str, Field(min_length=6, max_length=1024, pattern=URI_PATTERN)]
OutputUri = Annotated[str, Field(min_length=6, max_length=1024, pattern=OUTPUT_URI_PATTERN)]


class SecretReference(Model):
    """A Secret of the job's namespace; its keys are environment names (`HF_TOKEN`, ...)."""

    name: Name
    """Name of the Secret. Keys read: `HF_TOKEN`; `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
    `AWS_ENDPOINT_URL`, `AWS_REGION`. Under `finetune local` a folder `secrets/<name>` of the state
    folder with one file a key, else the same names in the environment."""


class Location(Model):
    """A place to read from."""

    uri: Uri
    """One of `hf://org/name` (data: `hf://datasets/org/name`), `pvc://claim/path`, `s3://bucket/key`,
    `https://host/path`, `package://python_module/file`, and `file://path` (only under
    `finetune local`; relative to the manifest's folder)."""
    revision: ShortText | None = None
    """Branch, tag or commit of an `hf://` repository. Unset: `main`. The commit it named when the
    job was prepared stands in `status.resolved.modelRevision`."""
    credentials_secret_ref: SecretReference | None = None
    """Secret with the credentials of a private location. Unset: anonymous."""


class Retain(StrEnum):
    """What happens to an output when its object is deleted."""

    RETAIN = "Retain"
    DELETE = "Delete"


class Output(Model):
    """Where the result goes: `<uri>/<namespace>/<name>/run-<n>/`."""

    uri: OutputUri | None = None
    """`pvc://claim/path`, or `file://path` under `finetune local`. Unset: a claim of the job's own,
    `<job>-output`."""
    retain: Retain = Retain.RETAIN
    """`Retain` keeps the output when the job is deleted; `Delete` removes it with the job."""
    overwrite: bool = False
    """Replace a different result that is already there. False: such a job is refused, and nothing is
    ever overwritten."""


class AccessMode(StrEnum):
    """How nodes may mount a claim."""

    ONE_NODE = "ReadWriteOnce"
    MANY_NODES = "ReadWriteMany"


class ClaimSettings(Model):
    """A claim that the operator makes."""

    class_name: ObjectName | None = None
    """StorageClass. Unset: the profile's, or the cluster's default."""
    size: Quantity | None = None
    """Size. Unset: the profile's, or the operator's setting."""
    access_mode: AccessMode | None = None
    """`ReadWriteOnce` or `ReadWriteMany`. Unset: the profile's, or the operator's setting."""


class Checkpoint(Model):
    """When checkpoints are written and how many are kept."""

    cel_rules = (
        Rule(
            "!(has(self.everySteps) && has(self.everyMinutes))",
            "`everySteps` and `everyMinutes` exclude each other; set one",
        ),
    )

    every_steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Optimizer steps between two checkpoints. Unset: about ten a run, at least every 500 steps."""
    every_minutes: Annotated[int, Field(ge=1, le=1440)] | None = None
    """Minutes between two checkpoints, instead of steps."""
    keep_last: Annotated[int, Field(ge=1, le=100)] = 2
    """Checkpoints kept besides the best one."""
