"""The machines of a job, and what happens when they fail."""

from typing import Annotated

from pydantic import Field

from finetune_api.base import Model


class EnvironmentVariable(Model):
    """One environment variable."""

    name: Annotated[str, Field(max_length=64, pattern=r"^(NCCL|TORCH|GLOO|OMP|CUDA)_[A-Z0-9_]+$")]
    """`NCCL_*`, `TORCH_*`, `GLOO_*`, `OMP_*` or `CUDA_*`: others could change what is run."""
    value: Annotated[str, Field(max_length=1024)]
    """Its value."""


class Workers(Model):
    """The processes that train."""

    gpus_per_node: Annotated[int, Field(ge=0, le=16)] | None = None
    """GPUs; 0 trains on the CPU. Unset: 1; `finetune local` uses what is there."""
    processes_per_node: Annotated[int, Field(ge=1, le=64)] | None = None
    """Training processes. Unset: one per GPU, or 1 on the CPU. With GPUs it must equal gpusPerNode."""
    termination_grace_period_seconds: Annotated[int, Field(ge=5, le=3600)] = 110
    """Seconds a stopped worker has to save a checkpoint."""
    env: Annotated[list[EnvironmentVariable], Field(max_length=32)] | None = None
    """Environment of the training processes."""


class FailurePolicy(Model):
    """When to try again."""

    max_restarts: Annotated[int, Field(ge=0, le=100)] = 3
    """New attempts after failures that are worth one (lost node, stall, eviction without progress).
    Wrong configuration or data is never tried again."""
    stall_timeout_seconds: Annotated[int, Field(ge=5, le=86400)] = 1800
    """Seconds without progress (steps, loading, evaluation, saving) after which an attempt counts as
    stalled and is restarted."""
