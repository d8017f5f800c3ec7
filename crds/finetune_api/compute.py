"""The machines of a job, and what happens when they fail."""

from typing import Annotated

from pydantic import Field

from finetune_api.base import Model
from finetune_api.pods import Gpu, LocalReference, ObjectName, PodSettings, Quantity, Resources

FREE_VARIABLES = ("NCCL_", "TORCH_", "GLOO_", "OMP_", "CUDA_")
"""Beginnings of the names of variables that every job may set."""
DEFAULT_GRACE_SECONDS = 110


class EnvironmentVariable(Model):
    """One environment variable."""

    name: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """`NCCL_*`, `TORCH_*`, `GLOO_*`, `OMP_*`, `CUDA_*`, and what the WorkerProfile allows: others
    could change what is run."""
    value: Annotated[str, Field(max_length=1024)]
    """Its value."""


class Workers(Model):
    """The processes that train."""

    gpus_per_node: Annotated[int, Field(ge=0, le=16)] | None = None
    """GPUs; 0 trains on the CPU. Unset: 1; `finetune local` uses what is there."""
    processes_per_node: Annotated[int, Field(ge=1, le=64)] | None = None
    """Training processes. Unset: one per GPU, or 1 on the CPU. With GPUs it must equal gpusPerNode."""
    gpu: Gpu | None = None
    """Which GPUs. Unset: the profile's. On a cluster."""
    resources: Resources | None = None
    """CPU and memory of the training pod. Unset: none asked for, none limited. On a cluster."""
    shared_memory: Quantity | None = None
    """Most shared memory (/dev/shm) of the training pod. Unset: no limit but the pod's. On a
    cluster."""
    termination_grace_period_seconds: Annotated[int, Field(ge=5, le=3600)] | None = None
    """Seconds a stopped worker has to save a checkpoint. Unset: the profile's, or 110."""
    env: Annotated[list[EnvironmentVariable], Field(max_length=32)] | None = None
    """Environment of the training processes."""
    pod: PodSettings | None = None
    """Placement and marks of the job's pods, of all steps. On a cluster."""
    profile_ref: LocalReference | None = None
    """WorkerProfile. Unset: the default one, if there is one. On a cluster."""


class Scheduling(Model):
    """How pods get their turn, on a cluster."""

    queue_name: ObjectName | None = None
    """LocalQueue of Kueue. Every Job is made suspended and waits until the queue admits it."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pods."""


class FailurePolicy(Model):
    """When to try again."""

    max_restarts: Annotated[int, Field(ge=0, le=100)] = 3
    """New attempts after failures that are worth one (lost node, stall, eviction without progress).
    Wrong configuration or data is never tried again."""
    stall_timeout_seconds: Annotated[int, Field(ge=5, le=86400)] = 1800
    """Seconds without progress (steps, loading, evaluation, saving) after which an attempt counts as
    stalled and is restarted."""
