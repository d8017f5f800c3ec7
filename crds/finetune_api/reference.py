"""The reference manual of our kinds in Markdown, generated from their models.

`python -m finetune_api.reference [--check] [FOLDER]` writes it, or tells which file has drifted.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from finetune_api.base import API_VERSION
from finetune_api.crd import RESOURCES, Resource, resource_schema, run_generator
from finetune_api.structural import Schema, walk

REFERENCE_FOLDER = Path(__file__).parents[2] / "docs" / "reference"
_INTRO = """\
<!-- Generated from the models by `python -m finetune_api.reference`; do not edit. -->

# {kind}

{description}

`apiVersion: {api_version}`, `kind: {kind}`; namespaced, short name `{short_name}`. `kubectl explain
{singular}.spec` shows the same text.

The column Default tells what an unset field becomes in the stored object; a dash means that the
field stays unset, and its description tells what happens then. `[]` stands for each item of a list,
`{{}}` for each value of a map.
"""
_TABLE_HEAD = "| Field | Type | Default | Description |\n| --- | --- | --- | --- |"
_BOUND_WORDS = {
    "string": ("minLength", "maxLength", "characters"),
    "array": ("minItems", "maxItems", "items"),
    "object": ("minProperties", "maxProperties", "entries"),
}


def reference_page(resource: Resource) -> str:
    """Return the page of a kind."""
    schema = resource_schema(resource)
    intro = _INTRO.format(
        kind=resource.kind,
        description=schema["description"],
        api_version=API_VERSION,
        short_name=resource.short_name,
        singular=resource.kind.lower(),
    )
    sections = [
        _section(path, node)
        for path, node in walk(schema)
        if "properties" in node and path.startswith(("spec", "status"))
    ]
    return "\n".join([intro, *_rules(schema), *sections])


def _section(path: str, node: Schema) -> str:
    lines = [f"## {path}", ""]
    if node.get("description"):
        lines += [node["description"], ""]
    required = node.get("required", [])
    lines += [_TABLE_HEAD]
    for name, field in node["properties"].items():
        inner = f"{path}.{name}"
        default = "required" if name in required else _default(field)
        cells = (f"`{inner}`", _type(field, path=inner), default, field.get("description", ""))
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join([*lines, "", *_rules(node)])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n\n", "<br>")


def _rules(node: Schema) -> Iterator[str]:
    rules = node.get("x-kubernetes-validations", [])
    if rules:
        yield "Rules:\n"
        for rule in rules:
            yield f"- {_sentence(rule['message'])}<br>`{rule['rule']}`"
        yield ""


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _default(field: Schema) -> str:
    if "default" not in field:
        return "-"
    value = field["default"]
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _type(field: Schema, *, path: str) -> str:
    if "enum" in field:
        return "one of " + ", ".join(f"`{value}`" for value in field["enum"])
    kind = field.get("type")
    if kind == "array":
        return f"list of {_inner(field['items'], path=path + '[]')}{_size(field)}"
    if "additionalProperties" in field:
        values = _inner(field["additionalProperties"], path=path + "{}")
        return f"map of {values}{_size(field)}"
    if "properties" in field:
        return f"[object](#{_anchor(path)})"
    if kind is None:
        return "boolean, number or string"
    pattern = f", matching `{field['pattern']}`" if "pattern" in field else ""
    return f"{kind}{_range(field)}{_size(field)}{pattern}"


def _inner(field: Schema, *, path: str) -> str:
    name = _type(field, path=path)
    return f"({name})" if ", " in name else name


def _anchor(path: str) -> str:
    # As GitHub makes it of a heading: lower case, without punctuation.
    return "".join(character for character in path.lower() if character.isalnum())


def _size(field: Schema) -> str:
    least, most, unit = _BOUND_WORDS.get(field.get("type", ""), ("", "", ""))
    if most not in field:
        return ""
    if field.get(least):
        return f", {field[least]} to {field[most]} {unit}"
    return f", at most {field[most]} {unit}"


def _range(field: Schema) -> str:
    exclusive = field.get("exclusiveMinimum") or field.get("exclusiveMaximum")
    if {"minimum", "maximum"} <= set(field) and not exclusive:
        return f", {field['minimum']} to {field['maximum']}"
    words = ""
    if "minimum" in field:
        word = "above" if field.get("exclusiveMinimum") else "at least"
        words += f", {word} {field['minimum']}"
    if "maximum" in field:
        word = "below" if field.get("exclusiveMaximum") else "at most"
        words += f", {word} {field['maximum']}"
    return words


def reference_files() -> dict[str, str]:
    """Return the text of every page by its file name."""
    return {f"{resource.kind.lower()}.md": reference_page(resource) for resource in RESOURCES}


def main() -> int:
    """Write or check the reference manual."""
    return run_generator(
        reference_files(), module="finetune_api.reference", folder=REFERENCE_FOLDER
    )


if __name__ == "__main__":
    sys.exit(main())
