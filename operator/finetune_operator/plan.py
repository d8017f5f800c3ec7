"""The language of decisions: what is observed goes in, a Plan comes out. Knows no Kubernetes."""

from dataclasses import dataclass, field
from typing import NamedTuple

from finetune_api.compute import Scheduling, Workers
from finetune_api.contract import JobFile, Snapshot, Termination
from finetune_api.datasetregistration import DatasetRegistration
from finetune_api.finetunejob import FineTuneJob
from finetune_api.resolve import Machine
from finetune_api.status import Status
from finetune_api.storage import ClaimSettings
from finetune_api.workerprofile import WorkerProfile, WorkerProfileSpec


class Key(NamedTuple):
    """One object."""

    kind: str
    namespace: str
    name: str


@dataclass(frozen=True)
class Placement:
    """Where pods go and what they get, on a cluster."""

    workers: Workers = field(default_factory=Workers)
    scheduling: Scheduling | None = None
    storage: ClaimSettings | None = None
    profile: WorkerProfileSpec | None = None


@dataclass(frozen=True)
class StepRun:
    """One attempt at a step, to be made once, under a name that follows from what it is."""

    name: str
    owner: Key
    job_file: JobFile
    step: str
    """Name of the step among the owner's, as in its attempts."""
    shared_name: str
    """Name of what all attempts at the step share."""
    placement: Placement = Placement()
    """Where its pods go."""
    work_claim: str = ""
    """Claim of the working files; unset: they end with the run."""
    needs_torch: bool = True
    """Whether its image must have torch."""
    asks_for_gpus: bool = False
    """Whether the job it belongs to trains on GPUs."""
    base: str = ""
    """Folder that relative `file://` locations of the owner start from."""


@dataclass(frozen=True)
class Waiting:
    """What keeps a run from starting."""

    reason: str
    """One word, e.g. `ImageNotPulled`."""
    message: str
    """What is missing, by name, and what to do."""


@dataclass(frozen=True)
class ObservedRun:
    """A step run that exists."""

    name: str
    run: int
    """Number of the run of its owner that it belongs to."""
    step: str
    is_running: bool
    started_at: float | None
    """When its processes started, in seconds since the epoch; None: not yet."""
    ended_at: float | None = None
    waiting: Waiting | None = None
    """Set while its processes have not started, for a reason."""
    termination: Termination | None = None
    snapshot: Snapshot | None = None


@dataclass(frozen=True)
class Observed:
    """Everything a decision may look at besides its object."""

    runs: dict[str, ObservedRun] = field(default_factory=dict)
    """Runs owned by the object, by name."""
    refusals: dict[str, Waiting] = field(default_factory=dict)
    """Runs that could not be made, by name, and why."""
    datasets: dict[str, DatasetRegistration] = field(default_factory=dict)
    """Registrations of the namespace that the object names and that exist."""
    jobs: dict[str, FineTuneJob] = field(default_factory=dict)
    """Jobs of the namespace that the object names and that exist."""
    job_runs: dict[str, dict[str, ObservedRun]] = field(default_factory=dict)
    """Runs of those jobs."""
    machine: Machine | None = None
    """This computer, under `finetune local`."""
    profiles: dict[str, WorkerProfile] = field(default_factory=dict)
    """All profiles of the cluster, by name."""
    predecessor_pods: tuple[str, ...] = ()
    """Pods of an earlier object of the same name that have not ended."""
    namespace_labels: dict[str, str] = field(default_factory=dict)
    """Labels of the object's namespace, where a profile selects by them."""


@dataclass(frozen=True)
class Event:
    """A transition worth telling."""

    reason: str
    message: str
    is_warning: bool = False


@dataclass(frozen=True)
class Plan:
    """What to do now. Every part is safe to repeat."""

    status: Status | None = None
    """Written first, if it differs."""
    runs: tuple[StepRun, ...] = ()
    """Created, each at most once."""
    stops: tuple[str, ...] = ()
    """Told to save and end."""
    removals: tuple[str, ...] = ()
    """Runs removed with their folders or objects."""
    removes_work: bool = False
    """Remove the working files of all runs."""
    removed_outputs: tuple[str, ...] = ()
    """Locations removed with everything below them."""
    holds_object: bool | None = None
    """Whether the object must stay, once deleted, until its output is seen to; None: as it is."""
    releases_object: bool = False
    """The object may vanish now."""
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None
    """Seconds until time alone may change the decision."""
