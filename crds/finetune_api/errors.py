"""Readable refusals: path, value, what must hold, what to do."""

import difflib
import json
import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from finetune_api.base import Model

REQUIREMENTS = {
    "int_type": "it must be a whole number; write one, without quotes",
    "float_type": "it must be a number; write one, without quotes",
    "bool_type": "it must be a truth value; write true or false, without quotes",
    "string_type": "it must be text; put it in quotes",
    "list_type": "it must be a list; write each item on a line of its own, after `- `",
    "dict_type": "it must be a map; write `name: value` lines below it",
    "model_type": "it must hold fields; write `field: value` lines below it",
    "greater_than_equal": "it must be at least {ge}; raise it",
    "greater_than": "it must be above {gt}; raise it",
    "less_than_equal": "it must be at most {le}; lower it",
    "less_than": "it must be below {lt}; lower it",
    "string_too_short": "it must have {min_length} or more characters; write more",
    "string_too_long": "it must have at most {max_length} characters; shorten it",
    "too_short": "it must hold {min_length} or more; add what is missing",
    "too_long": "it must hold {max_length} or fewer; remove the others",
}
"""Pydantic's kinds of error → what must hold and what to do."""
SAME_AS = {"int_from_float": "int_type", "int_parsing_size": "int_type"}
SCALAR = "it must be true, false, a number or text; write one of them"
BRANCHES = ("bool", "int", "float", "str", "[key]")
"""What pydantic adds to a location that is not a field: branches of unions, the key of a map."""
MEANINGS = {
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$": "lower-case letters, digits and '-', no '-' at an end",
}
"""Patterns whose form their field's documentation does not describe."""
HIDDEN_BELOW = "credentialsSecretRef"
"""A secret given in the place of a reference to it must not be repeated."""


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


def nearest(name: object, known: Iterable[str]) -> str:
    """Ask for the name that was probably meant, or tell all there are."""
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if close:
        return f"did you mean `{close[0]}`?"
    return f"known here: {', '.join(names)}; remove it or rename it"


def explain(error: ValidationError, *, root: type[Model], path: str) -> list[str]:
    """Turn pydantic's errors into sentences that start with the field's path in the manifest."""
    places: dict[str, list[ErrorDetails]] = {}
    for detail in error.errors():
        # The branches of a union fail each for itself, at one place.
        places.setdefault(_joined(path, _location(detail)), []).append(detail)
    return [f"`{where}`: {_sentence(details, root)}" for where, details in places.items()]


def _sentence(details: list[ErrorDetails], root: type[Model]) -> str:
    detail, location = details[0], _location(details[0])
    context, value = _context(detail), shown(detail["input"])
    if HIDDEN_BELOW in location:
        value = "the value (not shown, it may be secret)"
    if len(details) > 1 and detail["loc"][-1] in BRANCHES:
        return f"{value} is refused; {SCALAR}"
    match detail["type"]:
        case "extra_forbidden":
            return f"unknown field; {_nearest_field(root, location)}"
        case "missing":
            return "missing; it is required, set it"
        case "enum" | "literal_error":
            expected = context["expected"]
            return f"{value} is not allowed; it must be {expected}; {_choice(detail, expected)}"
        case "string_pattern_mismatch":
            pattern = context["pattern"]
            meaning = MEANINGS.get(pattern) or _described(root, location)
            return f"{value} is refused; it must match {pattern} ({meaning}); change it accordingly"
        case kind:
            wanted = REQUIREMENTS.get(SAME_AS.get(kind, kind))
            if wanted is None:
                return f"{value} is refused; {_lowered(detail['msg'])}; correct it"
            return f"{value} is refused; {wanted.format(**context)}"


def _context(detail: ErrorDetails) -> dict[str, str]:
    """Return the bounds that a value breaks; whole numbers without a point."""
    bounds = detail.get("ctx", {})
    return {
        name: f"{bound:g}" if isinstance(bound, float) else str(bound)
        for name, bound in bounds.items()
    }


def _choice(detail: ErrorDetails, expected: str) -> str:
    allowed = re.findall("'([^']*)'", expected)
    close = difflib.get_close_matches(str(detail["input"]), allowed, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    return "choose one of them" if len(allowed) > 1 else "write that"


def _location(detail: ErrorDetails) -> list[int | str]:
    """Return where an error is, without the branch of a union that it is of."""
    location = list(detail["loc"])
    is_field = detail["type"] in ("extra_forbidden", "missing")
    return location if is_field or location[-1] not in BRANCHES else location[:-1]


def _joined(path: str, location: list[int | str]) -> str:
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".")


def _lowered(message: str) -> str:
    message = message.replace("Input should be", "it must be").replace("should", "must")
    return message[:1].lower() + message[1:]


def _nearest_field(root: type[Model], location: list[int | str]) -> str:
    schema: dict[str, Any] = root.model_json_schema()
    node = schema
    for part in location[:-1]:
        node = _child(schema, node, part)
    return nearest(location[-1], node.get("properties", {}))


def _described(root: type[Model], location: list[int | str]) -> str:
    """Return what the documentation says of a field's form, in one sentence."""
    schema: dict[str, Any] = root.model_json_schema()
    node = schema
    for part in location[:-1]:
        node = _child(schema, node, part)
    field = node.get("properties", {}).get(location[-1], {})
    text = " ".join(str(field.get("description", "")).split()).split(". ")[0].rstrip(".")
    return text[:1].lower() + text[1:] or "see its documentation"


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
