"""Readable refusals: path, value, what must hold, what to do."""

import difflib
import json
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from finetune_api.base import Model


class Refusal(ValueError):
    """One or more reasons why something a user wrote is refused."""

    def __init__(self, problems: Iterable[str]) -> None:
        """Keep the problems, one sentence each."""
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def shown(value: object, *, limit: int = 80) -> str:
    """Return a value as JSON, cut to `limit` characters."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def explain(error: ValidationError, *, root: type[Model], path: str) -> list[str]:
    """Turn pydantic's errors into sentences that start with the field's path in the manifest."""
    return [_sentence(detail, root=root, path=path) for detail in error.errors()]


def _sentence(detail: ErrorDetails, *, root: type[Model], path: str) -> str:
    location = [part for part in detail["loc"] if not _is_union_branch(part)]
    where = f"`{_joined(path, location)}`"
    context, value = detail.get("ctx", {}), shown(detail["input"])
    match detail["type"]:
        case "extra_forbidden":
            return f"{where}: unknown field; {_nearest(root, location)}"
        case "missing":
            return f"{where}: missing; it is required, set it"
        case "enum" | "literal_error":
            return f"{where}: {value} is not allowed; it must be {context['expected']}"
        case "string_pattern_mismatch":
            return f"{where}: {value} must match {context['pattern']}; change it accordingly"
        case _:
            return f"{where}: {value} is refused; {_lowered(detail['msg'])}; correct it"


def _is_union_branch(part: int | str) -> bool:
    return isinstance(part, str) and part.startswith(
        ("strict-", "function-", "bool", "int", "float", "str")
    )


def _joined(path: str, location: list[int | str]) -> str:
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".")


def _lowered(message: str) -> str:
    message = message.replace("Input should be", "it must be").replace("should", "must")
    return message[:1].lower() + message[1:]


def _nearest(root: type[Model], location: list[int | str]) -> str:
    """Name the field that was probably meant, or all there are."""
    schema: dict[str, Any] = root.model_json_schema()
    node = schema
    for part in location[:-1]:
        node = _child(schema, node, part)
    known = list(node.get("properties", {}))
    close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.6)
    if close:
        return f"did you mean `{close[0]}`?"
    return f"known here: {', '.join(known)}; remove it or rename it"


def _child(schema: dict[str, Any], node: dict[str, Any], part: int | str) -> dict[str, Any]:
    node = (
        node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, {})
    )
    for option in (node, *node.get("anyOf", [])):
        if "$ref" in option:
            found: dict[str, Any] = schema["$defs"][option["$ref"].rsplit("/", 1)[1]]
            return found
    for option in node.get("anyOf", []):
        if option.get("type") != "null":
            return dict(option)
    return node
