"""What formats share: names of columns and roles, and the checks of a conversation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.datasetregistration import Columns, Tags
from finetune_trainer.data.read import MAX_ROW_BYTES, TOO_LARGE, kind_of

Message = dict[str, str]
USUAL_COLUMNS = {
    "prompt": ("instruction", "prompt", "question"),
    "query": ("input", "query"),
    "response": ("output", "response", "answer", "completion"),
    "history": ("history",),
    "system": ("system",),
    "messages": ("conversations", "messages"),
}
USUAL_TAGS = {
    "role": ("from", "role"),
    "content": ("value", "content"),
    "user": ("human", "user"),
    "assistant": ("gpt", "assistant"),
    "system": ("system",),
}


class RowFault(ValueError):
    """A row does not fit its format."""

    def __init__(self, field: str, message: str) -> None:
        """Keep the field the fault stands in."""
        self.field = field
        super().__init__(message)


@dataclass(frozen=True)
class Layout:
    """Names of columns and roles, one of each, as found or given."""

    columns: Columns
    tags: Tags


Detect = Callable[[Mapping[str, Any], Columns, Tags], Layout | None]
Convert = Callable[[Mapping[str, Any], Layout], list[Message]]


@dataclass(frozen=True)
class Format:
    """How a format is recognised, and how its rows become messages."""

    detect: Detect
    convert: Convert
    needs: str
    """What a row must hold, for people."""


def column(row: Mapping[str, Any], given: Columns, key: str) -> str | None:
    """Return the name of a column in a row: the given one, or the usual one that is there.

    Asked row by row: a column that the first row lacks may hold something in the next.
    """
    name: str | None = getattr(given, key)
    if name is not None:
        return name
    taken = vars(given).values()
    return next((n for n in USUAL_COLUMNS[key] if n in row and n not in taken), None)


def tag(given: Tags, key: str, present: set[str]) -> str | None:
    """Return the name of a key or role: the given one, or the usual one that is there."""
    name: str | None = getattr(given, key)
    if name is not None:
        return name
    return next((usual for usual in USUAL_TAGS[key] if usual in present), None)


def text_of(row: Mapping[str, Any], field: str, *, required: bool = True) -> str:
    """Return a text field.

    Raises:
        RowFault: it is missing, empty or no text.
    """
    value = row.get(field)
    if value in (None, "") and not required:
        return ""
    if field not in row:
        raise RowFault(field, f"`{field}` is missing; it must hold text")
    return checked_text(value, field, required=required)


def checked_text(value: object, field: str, *, required: bool = True) -> str:
    """Return a text that can be tokenised.

    Raises:
        RowFault: it is empty, too long, no text, or no Unicode.
    """
    if not isinstance(value, str):
        raise RowFault(field, f"`{field}` is {kind_of(value)}; it must be text")
    if required and not value.strip():
        state = "holds only white space" if value else "is empty"
        raise RowFault(field, f"`{field}` {state}; it must hold text")
    if len(value) > MAX_ROW_BYTES:
        raise RowFault(field, f"`{field}` has {len(value) / 1e6:.1f} MB; {TOO_LARGE}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowFault(
            field, f"`{field}` holds half of a surrogate pair (`\\ud800`); it must be valid Unicode"
        ) from error
    return value


def checked(messages: list[Message], *, field: str) -> list[Message]:
    """Return a conversation that can be trained on.

    Raises:
        RowFault: turns do not alternate, or the assistant does not have the last word.
    """
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    if not turns:
        raise RowFault(field, f"`{field}` holds no turn; it must hold at least one exchange")
    for index, message in enumerate(turns):
        wanted = "user" if index % 2 == 0 else "assistant"
        if message["role"] != wanted:
            raise RowFault(
                field,
                f"turn {index + 1} of `{field}` is the {message['role']}'s; turns must alternate,"
                f" so it must be the {wanted}'s",
            )
    if turns[-1]["role"] != "assistant":
        raise RowFault(
            field, f"`{field}` ends with the user; the last turn must be the assistant's"
        )
    return messages
