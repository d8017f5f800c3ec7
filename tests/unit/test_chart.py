"""The chart's values: each told, documented, bound by the schema, and none without its setting.

What Helm makes of them: tests/integration/test_chart.py.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.chart import chart_files
from finetune_operator.permissions import files
from finetune_operator.settings import Settings

CHART = Path(__file__).parents[2] / "charts/finetune-operator"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
SCHEMA = json.loads((CHART / "values.schema.json").read_text("utf-8"))
NOT_VALUES = {"global"}
FROM_THE_RELEASE = {"lease": True, "progress": {"url": True}}
"""Settings that the chart takes from the release's name and namespace."""


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Return what is at the end of each path; empty maps and lists are ends."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= leaves(inner, f"{path}.{key}" if path else key)
    return found


def branches(schema: dict[str, Any], path: str = "") -> dict[str, dict[str, Any]]:
    """Return the schemas of objects whose keys are ours."""
    if reference := schema.get("$ref"):
        schema = SCHEMA["$defs"][reference.rsplit("/", 1)[1]]
    if "properties" not in schema:
        return {}
    found = {path: schema}
    for key, inner in schema["properties"].items():
        found |= branches(inner, f"{path}.{key}" if path else key)
    return found


def at(path: str) -> Any:
    """Return a value."""
    found: Any = VALUES
    for key in filter(None, path.split(".")):
        found = found[key]
    return found


@pytest.mark.parametrize("name", chart_files())
def test_crds_do_not_drift(name: str) -> None:
    text = (CHART / "files/crds" / name).read_text("utf-8")
    assert text == chart_files()[name], "run `make generate`"


def test_no_crd_is_left_over() -> None:
    assert {path.name for path in (CHART / "files/crds").iterdir()} == set(chart_files())


@pytest.mark.parametrize("name", files())
def test_rules_do_not_drift(name: str) -> None:
    assert (CHART / "files" / name).read_text("utf-8") == files()[name], "run `make generate`"


@pytest.mark.parametrize("path", branches(SCHEMA))
def test_schema_knows_the_values_and_no_others(path: str) -> None:
    schema = branches(SCHEMA)[path]
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) - NOT_VALUES == set(at(path))
    assert set(schema.get("required", ())) <= set(schema["properties"])


def test_every_value_has_a_comment() -> None:
    lines = (CHART / "values.yaml").read_text("utf-8").splitlines()
    bare = [
        line
        for before, line in zip(["", *lines], lines, strict=False)
        if line.strip() and not line.lstrip().startswith("#") and "#" not in before
    ]
    assert not bare


def test_readme_lists_every_value_with_its_default() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]*)` \| \S", (CHART / "README.md").read_text(), re.M)
    assert {path: yaml.safe_load(default) for path, default in rows} == leaves(VALUES)


def test_every_setting_has_a_value_with_the_same_default() -> None:
    images = {"trainer": VALUES["images"]["trainer"]}
    settings = Settings.model_validate({"images": images}).model_dump(
        mode="json", by_alias=True, exclude=FROM_THE_RELEASE
    )
    assert {path: value or "" for path, value in leaves(settings).items()} == {
        path: value or "" for path, value in leaves({key: VALUES[key] for key in settings}).items()
    }
