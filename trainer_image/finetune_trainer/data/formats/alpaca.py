"""Alpaca: one instruction, optional input, one answer; optional history and system text."""

from collections.abc import Mapping
from typing import Any

from finetune_api.datasetregistration import Columns, Tags
from finetune_trainer.data.formats.layout import Layout, Message, RowFault, column, text_of


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
    if columns.system and (system := text_of(row, columns.system, required=False)):
        messages.append({"role": "system", "content": system})
    if columns.history:
        messages += _history(row.get(columns.history) or [], columns.history)
    prompt = text_of(row, columns.prompt or "instruction")
    query = text_of(row, columns.query, required=False) if columns.query else ""
    messages.append({"role": "user", "content": f"{prompt}\n{query}" if query else prompt})
    messages.append({"role": "assistant", "content": text_of(row, columns.response or "output")})
    return messages


def _history(pairs: object, field: str) -> list[Message]:
    messages: list[Message] = []
    if not isinstance(pairs, list):
        raise RowFault(field, f"`{field}` is a {type(pairs).__name__}; it must be a list of pairs")
    for index, pair in enumerate(pairs):
        if not (
            isinstance(pair, list | tuple)
            and len(pair) == 2
            and all(isinstance(p, str) and p for p in pair)
        ):
            raise RowFault(field, f"`{field}[{index}]` must be a pair of texts [prompt, response]")
        messages.append({"role": "user", "content": pair[0]})
        messages.append({"role": "assistant", "content": pair[1]})
    return messages
