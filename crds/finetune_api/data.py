"""How a job reads its data: template, length, layout, what is trained on."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from finetune_api.base import Message, Model, Name


class ChatTemplate(StrEnum):
    """Chat templates: the model's own, or a named one."""

    AUTO = "auto"
    ALPACA = "alpaca"
    CHATML = "chatml"
    GEMMA = "gemma"
    LLAMA3 = "llama3"
    MISTRAL = "mistral"
    PHI3 = "phi3"
    VICUNA = "vicuna"
    ZEPHYR = "zephyr"


class Overlong(StrEnum):
    """What happens to a row longer than `maxLength`."""

    TRUNCATE = "truncate"
    DROP = "drop"
    FAIL = "fail"


class Packing(StrEnum):
    """How the rows of a step are laid out in memory."""

    AUTO = "auto"
    PACKED = "packed"
    PADDED = "padded"


class TrainOn(StrEnum):
    """Which tokens of a conversation carry loss."""

    ASSISTANT = "assistant"
    LAST_TURN = "last-turn"
    ALL = "all"


class DatasetReference(Model):
    """A DatasetRegistration of the job's namespace."""

    name: Name
    """Name of the DatasetRegistration."""


class Data(Model):
    """How rows become tokens."""

    chat_template: ChatTemplate = ChatTemplate.AUTO
    """`auto`: the model's own chat template, the one serving will use. A name is for base models
    that have none."""
    enable_thinking: bool | None = None
    """Passed to templates that know thinking. Unset: the template's own default."""
    default_system: Message | None = None
    """System text for rows that have none. Unset: none is added (a template may add its own)."""
    max_length: Annotated[int, Field(ge=16, le=1_048_576)] | None = None
    """Longest row, in tokens. Unset: 2048, or the model's own limit where that is smaller."""
    overlong: Overlong = Overlong.TRUNCATE
    """A row longer than `maxLength` is cut at the end, dropped, or an error. Every touched row is
    counted in `status.data`; a row that loses all its trained tokens is always dropped."""
    packing: Packing = Packing.AUTO
    """A layout for speed only: `packed` lays rows end to end without padding, with exact attention;
    batches, losses and gradients equal those of `padded`. `auto` packs wherever attention allows."""
    train_on: TrainOn = TrainOn.ASSISTANT
    """`assistant`: all the assistant's turns and their end tokens; `last-turn`: only the last one;
    `all`: every token."""
    validation_split: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the rows kept out of training for evaluation, drawn by `training.seed`. Unset: none."""
    max_samples: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Rows used at most, drawn by `training.seed` from all datasets together. Unset: all."""
