"""Inputs from the schemas: each field with what a person or a program may get wrong (Acto's way)."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CRDS = Path(__file__).parents[2] / "crds"
HUGE = 200_000
STRINGS = (
    "", " ", "\t\n", "x" * 300, "x" * HUGE, "ü𝕏🦙", "\u202e\u0000x", "../../etc/passwd", "$(id)",
    "{{ x }}", "a b", "-", "UPPER", "http://169.254.169.254/latest", "0", "null", "true",
)  # fmt: skip
NUMBERS = (-1, 0, 1, 2**31, 2**63, -(2**63), 0.5, 1e308, 1e-9)
OTHER_TYPES: tuple[Any, ...] = ("text", 7, 0.5, True, [], ["x"], {}, {"x": 1}, [[]], None)


@dataclass(frozen=True)
class Input:
    """One object that differs from a valid one in one field."""

    body: dict[str, Any]
    path: str
    what: str

    @property
    def kind(self) -> str:
        """Its kind."""
        return str(self.body["kind"])


def schemas() -> dict[str, dict[str, Any]]:
    """Return the schema of each namespaced kind's spec."""
    found = {}
    for path in sorted(CRDS.glob("*.yaml")):
        crd = yaml.safe_load(path.read_text("utf-8"))
        if crd["spec"]["scope"] != "Namespaced":
            continue
        schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        found[crd["spec"]["names"]["kind"]] = schema["properties"]["spec"]
    return found


def inputs(valid: dict[str, dict[str, Any]]) -> Iterator[Input]:
    """Yield changed copies of valid objects, given by kind."""
    for kind, schema in schemas().items():
        for path, inner in fields(schema):
            for value, what in wrong_values(inner):
                yield Input(changed(valid[kind], path, value), ".".join(map(str, path)), what)


def fields(
    schema: dict[str, Any], at: tuple[Any, ...] = ()
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the path and schema of every field below spec; of lists the first item."""
    for name, inner in schema.get("properties", {}).items():
        yield (*at, name), inner
        yield from fields(inner, (*at, name))
    if isinstance(items := schema.get("items"), dict):
        yield (*at, 0), items
        yield from fields(items, (*at, 0))
    if isinstance(values := schema.get("additionalProperties"), dict):
        yield (*at, "key"), values


def wrong_values(schema: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    """Yield values of other types, at and beyond bounds, and strange ones of the right type."""
    own = schema.get("type")
    for value in OTHER_TYPES:
        if not _is(value, own):
            yield value, f"{type(value).__name__} {json.dumps(value)}"
    if own == "string":
        for text in STRINGS:
            yield text, f"text {text[:20]!r}"
        if (most := schema.get("maxLength")) is not None:
            yield "a" * most, "longest"
            yield "a" * (most + 1), "too long"
    if own in ("integer", "number"):
        bounds = [schema[name] for name in ("minimum", "maximum") if name in schema]
        beyond = [schema["minimum"] - 1] if "minimum" in schema else []
        beyond += [schema["maximum"] + 1] if "maximum" in schema else []
        for number in (*NUMBERS, *bounds, *beyond):
            yield number, f"number {number}"
    if own == "array":
        yield [], "no items"
        yield [{}] * 300, "many items"
    if own == "object":
        yield {}, "empty"
        yield {"noSuchField": 1}, "unknown field"
        yield {f"k{n}": "v" for n in range(300)}, "many keys"
    yield "<removed>", "removed"


def _is(value: Any, own: str | None) -> bool:
    types = {"string": str, "integer": int, "number": (int, float), "boolean": bool,
             "array": list, "object": dict}  # fmt: skip
    if own is None or own not in types:
        return False
    if isinstance(value, bool):
        return own == "boolean"
    return isinstance(value, types[own])  # type: ignore[arg-type]


def changed(body: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """Return a copy with one field of its spec set, or removed."""
    copy: dict[str, Any] = json.loads(json.dumps(body))
    place: Any = copy["spec"]
    for here, after in zip(path, path[1:], strict=False):
        empty: Any = [] if isinstance(after, int) else {}
        if isinstance(place, list):
            if not place:
                place.append(empty)
            elif not isinstance(place[0], type(empty)):
                place[0] = empty
            place = place[0]
        else:
            if not isinstance(place.get(here), type(empty)):
                place[here] = empty
            place = place[here]
    last = path[-1]
    if isinstance(place, list):
        place[:] = [] if value == "<removed>" else [value]
    elif value == "<removed>":
        place.pop(last, None)
    else:
        place[last] = value
    return copy
