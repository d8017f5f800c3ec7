"""OpenAI: a list of messages `{"role": "system"|"user"|"assistant", "content": text}`."""

from collections.abc import Mapping
from typing import Any

from finetune_api.datasetregistration import Columns, Tags
from finetune_trainer.data.formats.layout import Layout, Message
from finetune_trainer.data.formats.turns import convert_turns, detect_turns, role_names

ROLES = {"system": ("system", "developer"), "user": ("user",), "assistant": ("assistant",)}

NEEDS = "openai: `messages` (conversations), a list of turns with `role` and `content`"


def detect(row: Mapping[str, Any], columns: Columns, tags: Tags) -> Layout | None:
    """Recognise a row by turns with a `role` key."""
    return detect_turns(row, columns, tags, role_keys=("role",))


def convert(row: Mapping[str, Any], layout: Layout) -> list[Message]:
    """Turn a row into messages."""
    return convert_turns(row, layout, roles=role_names(layout.tags, ROLES))
