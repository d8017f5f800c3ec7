"""WorkerProfile: what an administrator gives jobs of a cluster, or of some namespaces."""

from typing import Annotated

from pydantic import ConfigDict, Field

from finetune_api.base import GROUP, Model, ShortText
from finetune_api.pods import (
    Gpu,
    LabelKey,
    Labels,
    LabelSelector,
    LocalReference,
    ObjectName,
    Quantities,
    Toleration,
)
from finetune_api.storage import ClaimSettings

DEFAULT_ANNOTATION = f"{GROUP}/is-default-profile"
EnvironmentName = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class ProfileVariable(Model):
    """One environment variable."""

    name: EnvironmentName
    """Its name."""
    value: Annotated[str, Field(max_length=1024)]
    """Its value."""


class WorkerProfileSpec(Model):
    """What the pods of jobs get. What a job itself sets in `workers` and `storage` goes before."""

    namespace_selector: LabelSelector | None = None
    """Namespaces whose jobs may use it. Unset: all."""
    image: ShortText | None = None
    """Trainer image instead of the operator's."""
    service_account_name: ObjectName | None = None
    """ServiceAccount of the pods, e.g. for a cloud's workload identity; no token is mounted."""
    node_selector: Labels | None = None
    """Labels that a node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=16)] | None = None
    """Taints of nodes that are tolerated."""
    gpu: Gpu | None = None
    """Which GPUs. Unset: `nvidia.com/gpu` of any product."""
    resources: Quantities | None = None
    """Further resources of training pods, e.g. `{rdma/ib: "8"}`."""
    capabilities: Annotated[
        list[Annotated[str, Field(max_length=32, pattern="^(IPC_LOCK)$")]], Field(max_length=4)
    ] = []
    """Linux capabilities of training pods; `IPC_LOCK` for RDMA. They do not pass `restricted`."""
    pod_labels: Labels | None = None
    """Labels of Jobs and pods."""
    pod_annotations: Annotated[dict[LabelKey, ShortText], Field(max_length=32)] | None = None
    """Annotations of Jobs and pods."""
    allow_metadata_address: bool = False
    """Let pods reach the cloud's metadata address (169.254.169.254), as some workload identities need."""
    env: Annotated[list[ProfileVariable], Field(max_length=64)] | None = None
    """Environment of all steps."""
    allowed_env: Annotated[list[EnvironmentName], Field(max_length=64)] = []
    """Variables that jobs may set besides NCCL_*, TORCH_*, GLOO_*, OMP_* and CUDA_*."""
    storage: ClaimSettings | None = None
    """Working claims of jobs that say nothing of their own."""
    image_pull_secrets: Annotated[list[LocalReference], Field(max_length=8)] | None = None
    """Secrets of the jobs' namespaces with credentials of the image's registry."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass of the pods."""
    termination_grace_period_seconds: Annotated[int, Field(ge=5, le=3600)] | None = None
    """Seconds to save a checkpoint, for jobs that say nothing of their own."""


class ProfileMetadata(Model):
    """Metadata of an object that has no namespace."""

    model_config = ConfigDict(extra="ignore")

    name: str
    uid: str = ""
    annotations: dict[str, str] = {}

    @property
    def is_default(self) -> bool:
        """Whether jobs that name no profile use it."""
        return self.annotations.get(DEFAULT_ANNOTATION) == "true"


class WorkerProfile(Model):
    """What an administrator gives jobs: image, nodes, GPUs, environment, storage."""

    metadata: ProfileMetadata
    spec: WorkerProfileSpec
