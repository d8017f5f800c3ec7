"""Models -> structural schemas: the part of OpenAPI v3 that a CustomResourceDefinition permits.

https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/
"""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

Schema = dict[str, Any]

_DROPPED = ("title", "examples", "discriminator", "propertyNames")
_SCALARS = ("boolean", "integer", "number", "string")
_LISTS = "x-kubernetes-list-type"
_KEYS = "x-kubernetes-list-map-keys"
_UNTYPED = ("x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string")
_RULES = "x-kubernetes-validations"
_PERMITTED = {
    "type", "format", "description", "default", "enum", "pattern", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "minItems",
    "maxItems", "minProperties", "maxProperties", "required", "properties", "items",
    "additionalProperties", _LISTS, _KEYS, _RULES, *_UNTYPED,
}  # fmt: skip
_MAXIMUM_OF = {"string": "maxLength", "array": "maxItems"}
_STANDARD_FIELDS = ("apiVersion", "kind", "metadata")


class _WithRules(GenerateJsonSchema):
    """Pydantic's generator, which also carries the CEL rules of each class."""

    def model_schema(self, schema: core_schema.ModelSchema) -> Schema:
        """Return the schema of a class with its rules beside it."""
        result = super().model_schema(schema)
        rules = getattr(schema["cls"], "cel_rules", ())
        if rules:
            result[_RULES] = [rule.as_validation() for rule in rules]
        return result


def structural_schema(model: type[BaseModel], *, defaults: bool) -> Schema:
    """Return the structural schema of a class, everything inlined.

    Schema defaults are kept only where they are constant scalars outside lists and maps, and only
    when `defaults` is set. Raises TypeError for types that a CRD cannot express.
    """
    schema = model.model_json_schema(by_alias=True, schema_generator=_WithRules)
    definitions = schema.pop("$defs", {})
    return _Inliner(definitions).structural(schema, open_types=(), defaults=defaults)


class _Inliner:
    """Turns JSON Schema into structural schemas, given the definitions it refers to."""

    def __init__(self, definitions: dict[str, Schema]) -> None:
        self.definitions = definitions

    def structural(self, node: Schema, *, open_types: tuple[str, ...], defaults: bool) -> Schema:
        """Return one node and all below it."""
        node, open_types = self._resolved(node, open_types=open_types)
        if "const" in node:
            node = {**node, "enum": [node.pop("const")]}
        result = {key: value for key, value in node.items() if key not in _DROPPED}
        if result.get("additionalProperties") is False:
            del result["additionalProperties"]
        if not defaults or not isinstance(result.get("default"), bool | int | float | str):
            result.pop("default", None)
        if "description" in result:
            result["description"] = _reflowed(result["description"])
        result = {**result, **_bounds(node)}
        if "properties" in result:
            result["properties"] = {
                name: self.structural(field, open_types=open_types, defaults=defaults)
                for name, field in node["properties"].items()
            }
        for inner in ("items", "additionalProperties"):
            if isinstance(result.get(inner), dict):
                result[inner] = self.structural(node[inner], open_types=open_types, defaults=False)
        return {**result, **_list_type(result)}

    def _resolved(
        self, node: Schema, *, open_types: tuple[str, ...]
    ) -> tuple[Schema, tuple[str, ...]]:
        """Follow references and drop `null`; what stands beside a reference wins."""
        node = dict(node)
        while "$ref" in node or "anyOf" in node:
            if "$ref" in node:
                name = node.pop("$ref").removeprefix("#/$defs/")
                if name in open_types:
                    raise TypeError(f"`{name}` contains itself; a CRD has no recursive types")
                open_types = (*open_types, name)
                node = {**self.definitions[name], **node}
            else:
                node = {**_one_of(node.pop("anyOf")), **node}
        return node, open_types


def _one_of(options: list[Schema]) -> Schema:
    present = [option for option in options if option.get("type") != "null"]
    if len(present) == 1:
        return present[0]
    types = {option.get("type") for option in present}
    if types == {"integer", "string"}:
        return {"x-kubernetes-int-or-string": True}
    if types <= set(_SCALARS):
        # A structural schema has one type a value; pydantic still refuses lists and objects.
        return {"x-kubernetes-preserve-unknown-fields": True}
    raise TypeError(f"a CRD has one type a field, not {sorted(map(str, types))}")


def _reflowed(text: str) -> str:
    paragraphs = text.split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _bounds(node: Schema) -> Schema:
    # In OpenAPI 3.0 an exclusive bound is a flag beside the bound.
    bounds: Schema = {"format": "int64"} if node.get("type") == "integer" else {}
    for bound in ("minimum", "maximum"):
        exclusive = f"exclusive{bound.capitalize()}"
        if exclusive in node:
            bounds |= {bound: node[exclusive], exclusive: True}
    return bounds


def _list_type(node: Schema) -> Schema:
    if node.get("type") != "array":
        return {}
    names = node.get("items", {}).get("properties", {})
    required = node.get("items", {}).get("required", [])
    is_condition = {"type", "status", "lastTransitionTime"} <= set(names)
    if set(names) == {"name"}:
        return {_LISTS: "atomic"}  # references: their order is the order of the data
    key = "type" if is_condition else "name"
    return {_LISTS: "map", _KEYS: [key]} if key in required else {_LISTS: "atomic"}


def walk(schema: Schema, *, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Yield every node with its path: `spec.datasets[].name`, `spec.extraArguments{}`."""
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from walk(field, path=f"{path}.{name}" if path else name)
    for inner, suffix in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(schema.get(inner), dict):
            yield from walk(schema[inner], path=path + suffix)


def lint_structural(schema: Schema) -> list[str]:
    """Return what a CRD's schema may not be, each fault as `path: fault`."""
    faults = []
    for path, node in walk(schema):
        if path in _STANDARD_FIELDS:
            continue  # the API server's own
        inside_list = "[]" in path or "{}" in path
        found = [
            *_keyword_faults(node),
            *_type_faults(node),
            *_default_faults(node, inside_list=inside_list),
        ]
        faults += [f"{path or '(root)'}: {fault}" for fault in found]
    return faults


def _keyword_faults(node: Schema) -> Iterator[str]:
    for keyword in sorted(set(node) - _PERMITTED):
        yield f"`{keyword}` is not permitted"
    for bound in ("exclusiveMinimum", "exclusiveMaximum"):
        if not isinstance(node.get(bound, True), bool):
            yield f"`{bound}` is a flag beside the bound"
    if "properties" in node and "additionalProperties" in node:
        yield "`properties` and `additionalProperties` exclude each other"
    for name in node.get("required", []):
        if name not in node.get("properties", {}):
            yield f"required `{name}` is no property"
    for rule in node.get(_RULES, []):
        if not rule.get("message") or "\n" in rule["message"]:
            yield f"rule `{rule['rule']}` needs a message of one line"


def _type_faults(node: Schema) -> Iterator[str]:
    kind = node.get("type")
    if kind not in (*_SCALARS, "array", "object"):
        if kind is not None or not any(node.get(mark) for mark in _UNTYPED):
            yield "`type` must be one of " + ", ".join((*_SCALARS, "array", "object"))
        return
    if kind in _MAXIMUM_OF and _MAXIMUM_OF[kind] not in node and "enum" not in node:
        yield f"`{kind}` needs `{_MAXIMUM_OF[kind]}`"
    if kind == "integer" and node.get("format") != "int64":
        yield "an integer needs `format: int64`"
    if kind == "object":
        yield from _object_faults(node)
    if kind == "array":
        yield from _array_faults(node)


def _object_faults(node: Schema) -> Iterator[str]:
    if "additionalProperties" in node:
        if not isinstance(node["additionalProperties"], dict):
            yield "`additionalProperties` must be the schema of the values"
        if "maxProperties" not in node:
            yield "a map needs `maxProperties`"
    elif "properties" not in node and not node.get(_UNTYPED[0]):
        yield "an object needs `properties`, or all of it is dropped"


def _array_faults(node: Schema) -> Iterator[str]:
    items = node.get("items")
    if not isinstance(items, dict):
        yield "an array needs `items`"
        return
    if node.get(_LISTS) not in ("atomic", "set", "map"):
        yield f"an array needs `{_LISTS}`"
    if node.get(_LISTS) == "map" and not node.get(_KEYS):
        yield f"a list map needs `{_KEYS}`"
    for key in node.get(_KEYS, []):
        if key not in items.get("required", []):
            yield f"list map key `{key}` must be a required field of the items"


def _default_faults(node: Schema, *, inside_list: bool) -> Iterator[str]:
    if "default" not in node:
        return
    if inside_list:
        yield "a default inside list or map items"
    if not isinstance(node["default"], bool | int | float | str):
        yield "a default that is no constant scalar"
    if "enum" in node and node["default"] not in node["enum"]:
        yield "a default that is not in `enum`"
