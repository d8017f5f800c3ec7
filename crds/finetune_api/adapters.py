"""Fine-tuning methods and the adapters they train."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from finetune_api.base import Model, ShortText


class Method(StrEnum):
    """Which weights are trained."""

    LORA = "lora"
    FULL = "full"


ModuleNames = Annotated[list[ShortText], Field(min_length=1, max_length=64)]


class Lora(Model):
    """LoRA: low-rank updates beside frozen weights (arXiv:2106.09685)."""

    rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Rank of the update matrices. Unset: 16."""
    alpha: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Scale of the update; its effect is alpha / rank. Unset: 2 x rank, so that the scale is 2 at
    every rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability with which an input of the adapter is dropped while training."""
    target_modules: ModuleNames | None = None
    """Names of the linear modules that get an adapter, e.g. `q_proj`; `all-linear` means every
    linear layer but the output head. Unset: `all-linear`."""
    rs_lora: bool = False
    """Rank-stabilised scaling alpha / sqrt(rank) (arXiv:2312.03732): for high ranks."""
    dora: bool = False
    """Weight-decomposed LoRA (arXiv:2402.09353): better at low ranks, slower."""
    modules_to_save: Annotated[list[ShortText], Field(max_length=16)] | None = None
    """Modules trained in full beside the adapter, e.g. `embed_tokens`."""
