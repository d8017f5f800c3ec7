"""FineTuneJob: from a base model and data to a tuned model."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from finetune_api.adapters import Lora, Method
from finetune_api.base import Model, Rule
from finetune_api.compute import FailurePolicy, Scheduling, Workers
from finetune_api.data import Data, DatasetReference
from finetune_api.meta import Metadata
from finetune_api.modelexport import JobExport
from finetune_api.status import (
    Artifact,
    Checkpoints,
    DataCounts,
    Estimate,
    History,
    Metrics,
    Progress,
    Resolved,
    Status,
    Usage,
)
from finetune_api.storage import Checkpoint, ClaimSettings, Location, Output
from finetune_api.training import Stage, Training

FROZEN_FIELDS = (
    "model", "stage", "method", "lora", "datasets", "evalDatasets", "data", "training",
    "checkpoint", "failurePolicy", "exports", "storage",
)  # fmt: skip


def _same(field: str) -> str:
    new, old = f"self.spec.{field}", f"oldSelf.spec.{field}"
    return f"(has({new}) == has({old}) && (!has({new}) || {new} == {old}))"


def _output_uri(of: str) -> str:
    return f"(has({of}.spec.output) && has({of}.spec.output.uri) ? {of}.spec.output.uri : '')"


def _frozen() -> Rule:
    """Return the rule of what cannot change once an attempt was made.

    One rule for all fields: it is evaluated at every write of a status too, and each rule that looks
    at the object costs the API server as much as all of this one, whose first comparison holds then.
    """
    same = {f"spec.{field}": _same(field) for field in FROZEN_FIELDS}
    same["spec.output.uri"] = f"({_output_uri('self')} == {_output_uri('oldSelf')})"
    workers = f"({_same('workers')} || oldSelf.spec.suspend)"
    attempts = "oldSelf.status.attempts"
    rule = (
        "self.spec == oldSelf.spec || self.spec.rerun > oldSelf.spec.rerun"
        f" || !has(oldSelf.status) || !has({attempts}) || {attempts}.size() == 0"
        f" || ({' && '.join([*same.values(), workers])})"
    )
    cannot = "cannot change once the job has started"
    again = "raise `spec.rerun` in the same change to run again"
    named = [f"({is_same} ? '' : '`{field}` {cannot}; ')" for field, is_same in same.items()]
    named.append(f"({workers} ? '' : '`spec.workers` {cannot} (but while suspended); ')")
    fields = ", ".join(f"`{field}`" for field in (*same, "spec.workers"))
    return Rule(
        rule,
        f"{fields} {cannot} (`spec.workers` can while suspended); {again}",
        f"{' + '.join(named)} + '{again}'",
    )


class Attention(StrEnum):
    """Implementations of attention."""

    AUTO = "auto"
    SDPA = "sdpa"
    EAGER = "eager"


class BaseModelSource(Location):
    """The model that is tuned."""

    trust_remote_code: bool = False
    """Run Python code that the model's repository brings. It can do anything the pod can."""
    allow_pickle: bool = False
    """Read weights in pickle files (`.bin`, `.pt`), which can run code while they are read."""
    attention: Attention = Attention.AUTO
    """`auto`: PyTorch's scaled-dot-product attention."""


class FineTuneJobSpec(Model):
    """What to train, on what, and how."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.lora) || self.method == 'lora'",
            "`lora` needs `method: lora`; remove the block or change the method",
        ),
        Rule(
            "self.datasets.all(d, self.datasets.exists_one(e, e.name == d.name))",
            "`datasets` names a DatasetRegistration twice; name each once",
        ),
        Rule(
            "!has(self.evalDatasets) || !has(self.data) || !has(self.data.validationSplit)",
            "`evalDatasets` and `data.validationSplit` exclude each other; remove one",
        ),
        Rule(
            "!has(self.exports) ||"
            " self.exports.all(d, self.exports.exists_one(e, e.name == d.name))",
            "`exports` uses a name twice; give each export its own",
        ),
        Rule(
            "self.rerun >= oldSelf.rerun", "`rerun` can only be raised; set it higher than it was"
        ),
    )

    model: BaseModelSource
    """The base model."""
    stage: Stage = Stage.SFT
    """`sft`: supervised fine-tuning on conversations."""
    method: Method = Method.LORA
    """`lora` trains a small adapter beside frozen weights; `full` trains all weights."""
    lora: Lora | None = None
    """Settings of `method: lora`. Unset: rank 16 on every linear layer."""
    datasets: Annotated[list[DatasetReference], Field(min_length=1, max_length=32)]
    """DatasetRegistrations to train on, one after the other; rows are shuffled over all of them."""
    eval_datasets: Annotated[list[DatasetReference], Field(min_length=1, max_length=32)] | None = (
        None
    )
    """DatasetRegistrations to evaluate on, instead of `data.validationSplit`."""
    data: Data | None = None
    """How rows become tokens."""
    training: Training | None = None
    """Hyper-parameters."""
    workers: Workers | None = None
    """The processes that train."""
    scheduling: Scheduling | None = None
    """Queue and priority. On a cluster."""
    storage: ClaimSettings | None = None
    """The run's working claim: base model, tokenised rows, checkpoints. On a cluster."""
    checkpoint: Checkpoint | None = None
    """When checkpoints are written and how many are kept."""
    failure_policy: FailurePolicy | None = None
    """When to try again."""
    output: Output | None = None
    """Where the result goes."""
    exports: Annotated[list[JobExport], Field(min_length=1, max_length=8)] | None = None
    """Exports of the result, made one after the other when training has succeeded."""
    suspend: bool = False
    """True: save a checkpoint, release the machines, keep the job. False: go on from the checkpoint."""
    active_deadline_seconds: Annotated[int, Field(ge=1, le=31_536_000)] | None = None
    """Seconds of running time (not waiting, not suspended) after which the job fails. Unset: none."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    """Seconds after the end until working files and pods are removed; never the output, never the
    job. Unset: they are kept."""
    rerun: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Raise it to run again from the start, with a changed spec or the same; the output goes to
    `run-<rerun + 1>`."""


class FineTuneJobStatus(Status):
    """State of a FineTuneJob."""

    run: int = 0
    """Number of the run this status is about, `spec.rerun` + 1; 0: not taken up yet."""
    progress: Progress | None = None
    """How far training is, by the trainer's last report."""
    metrics: Metrics | None = None
    """Latest values by the trainer's last report, as text: floats are not portable."""
    loss_history: History = []
    """Losses of training: at most 64 points, evenly chosen, first and last among them."""
    eval_history: History = []
    """Losses of evaluation, chosen likewise."""
    checkpoints: Checkpoints | None = None
    """What was saved."""
    estimate: Estimate | None = None
    """What the run is expected to need; found by `prepare`."""
    resolved: Resolved | None = None
    """Every value the run uses, whoever chose it; decided when `prepare` is through."""
    data: DataCounts | None = None
    """What became of the rows; counted by `prepare`."""
    artifacts: Annotated[list[Artifact], Field(max_length=32)] = []
    """Results: of training first, then of each export."""
    usage: Usage | None = None
    """GPU time of training. Unset: it used none, or no attempt at it has ended."""
    running_seconds: int = 0
    """Running time of ended attempts, for `activeDeadlineSeconds`."""


class FineTuneJob(Model):
    """A fine-tuning job."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (_frozen(),)

    metadata: Metadata
    spec: FineTuneJobSpec
    status: FineTuneJobStatus = FineTuneJobStatus()
