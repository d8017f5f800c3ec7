"""What an API server does to a manifest before it is stored: schema and CEL rules, the same text."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import cel

from finetune_api.crd import RESOURCES, resource_schema
from finetune_api.errors import Refusal
from finetune_api.objects import Resource, dump, parse


@cache
def _schema(kind: str) -> dict[str, Any]:
    return resource_schema(next(resource for resource in RESOURCES if resource.kind == kind))


@cache
def _compiled(rule: str) -> Any:
    return cel.compile(rule)


def admit(body: dict[str, Any], old: Resource | None = None) -> Resource:
    """Return the object of a manifest that may be stored over `old`.

    Raises:
        Refusal: every rule that it breaks, each with its path.
    """
    resource = parse(body)
    if old is not None:
        resource = resource.model_copy(update={"status": old.status})
    kind = type(resource).__name__
    problems = list(
        _broken(_schema(kind), dump(resource), dump(old) if old is not None else None, path="")
    )
    if problems:
        raise Refusal(problems)
    return resource


def _message(rule: dict[str, str], context: dict[str, Any]) -> str:
    if (expression := rule.get("messageExpression")) is None:
        return rule["message"]
    return str(_compiled(expression).execute(context))


def _broken(schema: dict[str, Any], value: Any, old: Any, *, path: str) -> Iterator[str]:
    """Yield the message of every rule that a value or a part of it breaks."""
    for rule in schema.get("x-kubernetes-validations", ()):
        is_transition = "oldSelf" in rule["rule"]
        if is_transition and old is None:
            continue  # a transition rule is not evaluated on creation
        context = {"self": value, **({"oldSelf": old} if is_transition else {})}
        if not _compiled(rule["rule"]).execute(context):
            yield f"`{path or 'object'}`: {_message(rule, context)}"
    if isinstance(value, dict):
        for name, part in schema.get("properties", {}).items():
            if name in value and name != "metadata":
                before = old.get(name) if isinstance(old, dict) else None
                yield from _broken(part, value[name], before, path=f"{path}.{name}".lstrip("."))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            # Items of atomic lists have no old counterpart.
            yield from _broken(schema.get("items", {}), item, None, path=f"{path}[{index}]")
