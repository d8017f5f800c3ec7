"""Objects as tables and descriptions, in the manner of kubectl."""

import json
from datetime import UTC, datetime
from typing import Any

import yaml

from finetune_api.base import API_VERSION
from finetune_api.crd import RESOURCES
from finetune_api.objects import Resource, dump

SHOWN_APART = {
    "phase", "reason", "message", "conditions", "lossHistory", "evalHistory", "attempts", "failure",
    "observedGeneration",
}  # fmt: skip
ATTEMPT_KEYS = (
    "step", "number", "startTime", "endTime", "reason", "exitCode", "resumedFromStep", "stepsDone",
)  # fmt: skip
CONDITION_KEYS = ("type", "status", "reason", "message")


def _at(body: dict[str, Any], path: str) -> Any:
    node: Any = body
    for part in path.lstrip(".").split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


def age(timestamp: str | None) -> str:
    """Return how long ago a time was, as kubectl says it."""
    if not timestamp:
        return ""
    return span(int(datetime.now(UTC).timestamp() - seconds_of(timestamp)))


def seconds_of(timestamp: str) -> float:
    """Return the seconds since the epoch of a time that Kubernetes wrote."""
    return datetime.strptime(timestamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()


def span(seconds: int) -> str:
    """Return a time span, as kubectl says it."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{max(seconds, 0)}s"


def whole(kind: str, resource: Resource) -> dict[str, Any]:
    """Return an object as an API server would show it."""
    return {"apiVersion": API_VERSION, "kind": kind, **dump(resource)}


def print_table(
    kind: str, bodies: list[dict[str, Any]], *, wide: bool, namespaces: bool = False
) -> None:
    """Print objects of one kind with the columns of its CRD."""
    columns = [
        column
        for column in next(r for r in RESOURCES if r.kind == kind).columns
        if wide or not column.priority
    ]
    rows = [["NAMESPACE", "NAME", *(column.name.upper() for column in columns)]]
    for body in bodies:
        cells = [
            age(_at(body, c.path)) if c.type == "date" else _cell(_at(body, c.path))
            for c in columns
        ]
        rows.append([_at(body, "metadata.namespace"), _at(body, "metadata.name"), *cells])
    print("\n".join(_aligned(rows if namespaces else [row[1:] for row in rows])))


def print_as(bodies: list[dict[str, Any]], output: str) -> None:
    """Print whole objects as JSON or YAML."""
    value: Any = (
        bodies[0] if len(bodies) == 1 else {"apiVersion": "v1", "kind": "List", "items": bodies}
    )
    if output == "json":
        print(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        print(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), end="")


def describe(body: dict[str, Any], events: list[dict[str, str]]) -> str:
    """Return everything worth knowing of an object, as text."""
    status: dict[str, Any] = body.get("status", {})
    lines = [
        f"Name:       {body['metadata']['name']}",
        f"Namespace:  {body['metadata']['namespace']}",
        f"Kind:       {body['kind']}",
        f"Phase:      {status.get('phase', '')} ({status.get('reason', '')})",
        f"Message:    {status.get('message', '')}",
    ]
    lines += _block("Spec", body["spec"])
    lines += _block("Status", {k: value for k, value in status.items() if k not in SHOWN_APART})
    lines += _failure(status.get("failure"))
    lines += _rows("Attempts", status.get("attempts", []), ATTEMPT_KEYS)
    lines += _rows("Conditions", status.get("conditions", []), CONDITION_KEYS)
    lines += _rows("Events", events[-15:], ("time", "type", "reason", "message"))
    return "\n".join(lines)


def _block(title: str, value: dict[str, Any]) -> list[str]:
    if not value:
        return []
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110)
    return [f"{title}:", *(f"  {line}" for line in text.splitlines())]


def _failure(failure: dict[str, Any] | None) -> list[str]:
    if not failure:
        return []
    lines = ["Failure:", f"  {failure['class']} in {failure['step']}: {failure['message']}"]
    if tail := failure.get("logTail"):
        lines += ["  Last lines of the log:", *(f"    {line}" for line in tail.splitlines()[-12:])]
    return lines


def _rows(title: str, rows: list[dict[str, Any]], keys: tuple[str, ...]) -> list[str]:
    if not rows:
        return []
    header = [key[:1].upper() + key[1:] for key in keys]
    cells = [[_cell(row.get(key)) for key in keys] for row in rows]
    return [f"{title}:", *(f"  {line}" for line in _aligned([header, *cells]))]


def _aligned(rows: list[list[str]]) -> list[str]:
    """Return rows as lines whose columns stand below each other, like kubectl's."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
