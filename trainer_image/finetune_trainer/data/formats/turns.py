"""Formats whose row is a list of turns."""

from collections.abc import Mapping
from typing import Any

from finetune_api.datasetregistration import Columns, Tags
from finetune_trainer.data.formats.layout import (
    Layout,
    Message,
    RowFault,
    checked,
    checked_text,
    column,
    tag,
    text_of,
)
from finetune_trainer.data.read import kind_of

MAX_TURNS = 2000
LONGEST_ROLE = 32


def detect_turns(
    row: Mapping[str, Any], columns: Columns, tags: Tags, *, role_keys: tuple[str, ...]
) -> Layout | None:
    """Recognise a row by its list of turns and the key that holds the speaker."""
    field = column(row, columns, "messages")
    turns = row.get(field) if field else None
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], Mapping):
        return None
    keys = set(turns[0])
    role = tags.role or next((key for key in role_keys if key in keys), None)
    content = tag(tags, "content", keys)
    if role is None or content is None or role not in keys:
        return None
    names = {"messages": field, "system": column(row, columns, "system")}
    found = Columns.model_validate({key: name for key, name in names.items() if name})
    return Layout(found, tags.model_copy(update={"role": role, "content": content}))


def convert_turns(
    row: Mapping[str, Any], layout: Layout, *, roles: dict[str, tuple[str, ...]]
) -> list[Message]:
    """Turn a row into messages; `roles` maps ours to the names accepted for them."""
    field = layout.columns.messages or "messages"
    turns = row.get(field)
    if not isinstance(turns, list):
        kind = "missing" if field not in row else kind_of(turns)
        raise RowFault(field, f"`{field}` is {kind}; it must be a list of turns")
    if len(turns) > MAX_TURNS:
        raise RowFault(
            field, f"`{field}` has {len(turns)} turns; at most {MAX_TURNS} are allowed; split it"
        )
    messages: list[Message] = []
    name = column(row, layout.columns, "system")
    if name and (system := text_of(row, name, required=False)):
        messages.append({"role": "system", "content": system})
    for index, turn in enumerate(turns):
        messages.append(_message(turn, f"{field}[{index}]", layout.tags, roles))
    if len(messages) > 1 and messages[0]["role"] == messages[1]["role"] == "system":
        raise RowFault(field, f"`{field}` and `{name}` both hold a system text; keep one")
    return checked(messages, field=field)


def _message(turn: object, where: str, tags: Tags, roles: dict[str, tuple[str, ...]]) -> Message:
    if not isinstance(turn, Mapping):
        raise RowFault(where, f"`{where}` is {kind_of(turn)}; it must be an object")
    key, content_key = tags.role or "role", tags.content or "content"
    speaker = turn.get(key)
    role = next((ours for ours, names in roles.items() if speaker in names), None)
    if role is None:
        known = ", ".join(name for names in roles.values() for name in names)
        raise RowFault(
            f"{where}.{key}",
            f"`{where}.{key}` is {_seen(turn, key)}; it must be one of {known}, or set `spec.tags`"
            " of the registration",
        )
    if turn.get("tool_calls") or turn.get("function_call"):
        raise RowFault(
            where,
            f"`{where}` calls a tool; rows with tools cannot be trained on yet; leave them out",
        )
    place = f"{where}.{content_key}"
    if content_key not in turn:
        raise RowFault(place, f"`{place}` is missing; it must hold text")
    return {"role": role, "content": checked_text(turn[content_key], place)}


def _seen(turn: Mapping[str, Any], key: str) -> str:
    """Return the name of a role; what cannot be one may be private, and is not repeated."""
    value = turn.get(key)
    if isinstance(value, str) and len(value) <= LONGEST_ROLE:
        return repr(value)
    return kind_of(value) if key in turn else "missing"


def role_names(tags: Tags, usual: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return the accepted names of each role: the given one alone, or the usual ones."""
    return {
        role: (given,) if (given := getattr(tags, role)) else names for role, names in usual.items()
    }
