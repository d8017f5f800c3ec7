"""What is kept of each object of a cluster: flat, typed, decoded straight from the wire.

As dictionaries ten thousand jobs would take ten times the memory and stop the loop for collections.
"""

import msgspec


class Meta(msgspec.Struct, rename="camel", gc=False):
    """Metadata, as far as anybody reads it."""

    name: str
    uid: str = ""
    namespace: str = ""
    resource_version: str = "0"
    generation: int = 1
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    finalizers: list[str] = []

    @property
    def version(self) -> int:
        """The resource version; a later write has a higher one (KEP-5504)."""
        return int(self.resource_version)


class _CustomWire(msgspec.Struct):
    metadata: Meta
    spec: msgspec.Raw = msgspec.Raw(b"{}")
    status: msgspec.Raw = msgspec.Raw(b"{}")


class Custom(msgspec.Struct, frozen=True, gc=False):
    """An object of ours: spec and status stay text until somebody decides on it."""

    metadata: Meta
    spec: bytes
    status: bytes

    @property
    def body(self) -> bytes:
        """The object as JSON, without kind and version."""
        meta = msgspec.json.encode(self.metadata)
        return b'{"metadata":%s,"spec":%s,"status":%s}' % (meta, self.spec, self.status)


class Condition(msgspec.Struct, rename="camel", frozen=True, gc=False):
    """A condition of a Job or Pod."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = None


class JobSpec(msgspec.Struct, frozen=True, gc=False):
    """Spec of a Job."""

    suspend: bool = False


class JobStatus(msgspec.Struct, frozen=True, gc=False):
    """Status of a Job."""

    conditions: list[Condition] = []


class Job(msgspec.Struct):
    """A Job that the operator made."""

    metadata: Meta
    spec: JobSpec = JobSpec()
    status: JobStatus = JobStatus()

    def has(self, condition: str) -> bool:
        """Tell whether a condition holds."""
        return any(c.type == condition and c.status == "True" for c in self.status.conditions)


class Waiting(msgspec.Struct, frozen=True, gc=False):
    """Why a container has not started."""

    reason: str = ""
    message: str = ""


class Running(msgspec.Struct, rename="camel", frozen=True, gc=False):
    """A container that runs."""

    started_at: str | None = None


class Terminated(msgspec.Struct, rename="camel", frozen=True, gc=False):
    """A container that ended."""

    exit_code: int
    reason: str = ""
    message: str = ""
    started_at: str | None = None
    finished_at: str | None = None


class ContainerState(msgspec.Struct, frozen=True, gc=False):
    """State of a container."""

    waiting: Waiting | None = None
    running: Running | None = None
    terminated: Terminated | None = None


class ContainerStatus(msgspec.Struct, frozen=True, gc=False):
    """Status of a container."""

    name: str = ""
    state: ContainerState = ContainerState()


class PodSpec(msgspec.Struct, rename="camel", frozen=True, gc=False):
    """Spec of a Pod."""

    node_name: str = ""


class PodStatus(msgspec.Struct, rename="camel", frozen=True, gc=False):
    """Status of a Pod."""

    phase: str = ""
    reason: str = ""
    message: str = ""
    conditions: list[Condition] = []
    container_statuses: list[ContainerStatus] = []


class Pod(msgspec.Struct):
    """A Pod of a Job that the operator made."""

    metadata: Meta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    def condition(self, type_: str) -> Condition | None:
        """Return a condition."""
        return next((c for c in self.status.conditions if c.type == type_), None)

    @property
    def state(self) -> ContainerState:
        """The state of its one container."""
        return next((c.state for c in self.status.container_statuses), ContainerState())


class Profile(msgspec.Struct):
    """A WorkerProfile, with its annotations: one of them makes it the default."""

    metadata: Meta
    body: bytes


Record = Custom | Job | Pod | Profile

_custom = msgspec.json.Decoder(_CustomWire)
_job = msgspec.json.Decoder(Job)
_pod = msgspec.json.Decoder(Pod)


def decode_custom(body: bytes | msgspec.Raw) -> Custom:
    """Return an object of ours."""
    wire = _custom.decode(body)
    # kubectl keeps the whole object there once more; nobody here reads it.
    wire.metadata.annotations = {}
    return Custom(wire.metadata, bytes(wire.spec), bytes(wire.status))


def decode_profile(body: bytes | msgspec.Raw) -> Profile:
    """Return a WorkerProfile."""
    wire = _custom.decode(body)
    meta = msgspec.json.encode(wire.metadata)
    return Profile(wire.metadata, b'{"metadata":%s,"spec":%s}' % (meta, bytes(wire.spec)))


def decode_job(body: bytes | msgspec.Raw) -> Job:
    """Return a Job."""
    return _job.decode(body)


def decode_pod(body: bytes | msgspec.Raw) -> Pod:
    """Return a Pod."""
    return _pod.decode(body)


class ListMeta(msgspec.Struct, rename="camel"):
    """Metadata of a list."""

    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class Page(msgspec.Struct):
    """One page of a list."""

    metadata: ListMeta
    items: list[msgspec.Raw] = []


class WatchEvent(msgspec.Struct):
    """One line of a watch."""

    type: str
    object: msgspec.Raw


decode_page = msgspec.json.Decoder(Page).decode
decode_event = msgspec.json.Decoder(WatchEvent).decode


class _Named(msgspec.Struct):
    class Metadata(msgspec.Struct):
        name: str
        namespace: str = ""

    metadata: Metadata


_named = msgspec.json.Decoder(_Named)


def name_of(body: bytes | msgspec.Raw) -> tuple[str, str]:
    """Return namespace and name of any object, whatever else stands in it."""
    meta = _named.decode(body).metadata
    return meta.namespace, meta.name


class _Versioned(msgspec.Struct):
    class Metadata(msgspec.Struct, rename="camel", frozen=True):
        resource_version: str = ""

    metadata: Metadata = Metadata()


_versioned = msgspec.json.Decoder(_Versioned)


def version_of(body: bytes | msgspec.Raw) -> str:
    """Return the resource version of any object, e.g. a bookmark."""
    return _versioned.decode(body).metadata.resource_version
