"""ShareGPT: a list of turns `{"from": "human"|"gpt", "value": text}`; other tags can be given."""

from collections.abc import Mapping
from typing import Any

from finetune_api.datasetregistration import Columns, Tags
from finetune_trainer.data.formats.layout import USUAL_TAGS, Layout, Message
from finetune_trainer.data.formats.turns import convert_turns, detect_turns, role_names

ROLES = {role: USUAL_TAGS[role] for role in ("system", "user", "assistant")}

NEEDS = "sharegpt: `conversations` (messages), a list of turns with `from` and `value`"


def detect(row: Mapping[str, Any], columns: Columns, tags: Tags) -> Layout | None:
    """Recognise a row by turns with a `from` key."""
    return detect_turns(row, columns, tags, role_keys=("from",))


def convert(row: Mapping[str, Any], layout: Layout) -> list[Message]:
    """Turn a row into messages; `human` and `user`, `gpt` and `assistant` mean the same."""
    return convert_turns(row, layout, roles=role_names(layout.tags, ROLES))
