"""Alpaca: one instruction, optional input, one answer; optional history and system text."""

from collections.abc import Mapping
from typing import Any

from finetune_api.datasetregistration import Columns, Tags
from finetune_trainer.data.formats.layout import (
    Layout,
    Message,
    RowFault,
    checked_text,
    column,
    text_of,
)
from finetune_trainer.data.read import kind_of

NEEDS = "alpaca: `instruction` (prompt, question) and `output` (response, answer, completion)"


def detect(row: Mapping[str, Any], columns: Columns, tags: Tags) -> Layout | None:
    """Recognise a row by its prompt and response columns."""
    names = {
        key: column(row, columns, key)
        for key in ("prompt", "query", "response", "history", "system")
    }
    if names["prompt"] is None or names["response"] is None:
        return None
    return Layout(Columns.model_validate({k: v for k, v in names.items() if v}), tags)


def convert(row: Mapping[str, Any], layout: Layout) -> list[Message]:
    """Turn a row into messages; prompt and query are joined by a line break."""
    columns = layout.columns
    messages: list[Message] = []
    name = column(row, columns, "system")
    if name and (system := text_of(row, name, required=False)):
        messages.append({"role": "system", "content": system})
    if name := column(row, columns, "history"):
        messages += _history(row.get(name) or [], name)
    prompt = text_of(row, columns.prompt or "instruction")
    name = column(row, columns, "query")
    query = text_of(row, name, required=False) if name else ""
    messages.append({"role": "user", "content": f"{prompt}\n{query}" if query else prompt})
    messages.append({"role": "assistant", "content": text_of(row, columns.response or "output")})
    return messages


def _history(pairs: object, field: str) -> list[Message]:
    messages: list[Message] = []
    if not isinstance(pairs, list):
        raise RowFault(field, f"`{field}` is {kind_of(pairs)}; it must be a list of pairs")
    for index, pair in enumerate(pairs):
        where = f"{field}[{index}]"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowFault(where, f"`{where}` must be a pair of texts [prompt, response]")
        for role, place in (("user", 0), ("assistant", 1)):
            text = checked_text(pair[place], f"{where}[{place}]")
            messages.append({"role": role, "content": text})
    return messages
