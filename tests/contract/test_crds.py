"""The committed CRDs and reference pages follow from the models and obey the API server's rules."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from finetune_api import crd, reference
from finetune_api.base import Model, Rule
from finetune_api.crd import RESOURCES, Resource, crd_files, crd_manifest, resource_schema
from finetune_api.reference import reference_files
from finetune_api.structural import Schema, lint_structural, structural_schema, walk
from finetune_api.yaml_reader import read_documents

ROOT = Path(__file__).parents[2]
MAXIMUM_CRD_BYTES = 256 * 1024
each_resource = pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.kind)


class Point(Model):
    cel_rules = (Rule("self.x > 0", "`x` must be positive"),)

    x: int
    name: Annotated[str, Field(max_length=8)] = "p"


class Everything(Model):
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    point: Point = Point(x=1)
    points: Annotated[list[Point], Field(max_length=2)] = []
    by_name: Annotated[dict[str, Point], Field(max_length=2)] | None = None
    any_scalar: int | float | str | None = None
    count: Annotated[int | str, Field(examples=["1%"])] = 3
    flag: bool = False


class Endless(Model):
    inner: "Endless | None" = None


class Mixed(Model):
    value: Point | str


@pytest.fixture
def everything() -> Schema:
    return structural_schema(Everything, defaults=True)


@pytest.mark.parametrize("name", crd_files())
def test_crds_do_not_drift(name: str) -> None:
    text = (ROOT / "crds" / name).read_text("utf-8")
    assert text == crd_files()[name], "run `python -m finetune_api.crd`"
    assert len(text.encode()) < MAXIMUM_CRD_BYTES


@pytest.mark.parametrize("name", reference_files())
def test_reference_does_not_drift(name: str) -> None:
    text = (ROOT / "docs" / "reference" / name).read_text("utf-8")
    assert text == reference_files()[name], "run `python -m finetune_api.reference`"


@each_resource
def test_kubectl_reads_the_crd_as_it_was_meant(resource: Resource) -> None:
    text = crd_files()[f"{resource.plural}.yaml"]
    assert read_documents(text, source="crd.yaml") == [crd_manifest(resource)]


@each_resource
def test_linter_finds_nothing(resource: Resource) -> None:
    assert lint_structural(resource_schema(resource)) == []


@each_resource
@pytest.mark.parametrize("part", ["spec", "status"])
def test_every_field_has_a_description(resource: Resource, part: str) -> None:
    schema = resource_schema(resource)["properties"]
    if part not in schema:
        assert resource.kind == "WorkerProfile", "every kind that is reconciled has a status"
        return
    fields = walk(schema[part], path=part)
    missing = [
        path
        for path, node in fields
        if not path.endswith(("[]", "{}")) and not node.get("description")
    ]
    assert missing == []


@each_resource
def test_columns_and_selectable_fields_exist(resource: Resource) -> None:
    paths = {f".{path}" for path, _ in walk(resource_schema(resource))}
    shown = {column.path for column in resource.columns} - {".metadata.creationTimestamp"}
    assert shown <= paths
    assert ".status.phase" in paths or resource.kind == "WorkerProfile"


@each_resource
def test_every_rule_of_the_models_is_in_the_crd(resource: Resource) -> None:
    schema = resource_schema(resource)
    nodes = dict(walk(schema))
    on_root = [rule.as_validation() for rule in (*resource.name_rules, *resource.model.cel_rules)]
    assert nodes[""]["x-kubernetes-validations"] == on_root
    expected = [rule.as_validation() for rule in getattr(resource.part("spec"), "cel_rules", ())]
    assert nodes["spec"].get("x-kubernetes-validations", []) == expected


def test_status_has_no_defaults() -> None:
    # An API server that adds fields to a status would speak for the operator.
    for resource in RESOURCES:
        status = resource_schema(resource)["properties"].get("status", {})
        assert [path for path, node in walk(status) if "default" in node] == []


def test_conditions_are_a_map_by_type() -> None:
    reconciled = [r for r in RESOURCES if "status" in r.model.model_fields]
    assert len(reconciled) == 3
    for resource in reconciled:
        conditions = resource_schema(resource)["properties"]["status"]["properties"]["conditions"]
        assert conditions["x-kubernetes-list-type"] == "map"
        assert conditions["x-kubernetes-list-map-keys"] == ["type"]


def test_optional_numbers_lose_null_and_keep_bounds(everything: Schema) -> None:
    assert everything["properties"]["share"] == {
        "type": "number", "minimum": 0, "exclusiveMinimum": True, "maximum": 1,
    }  # fmt: skip


def test_rules_go_with_their_class(everything: Schema) -> None:
    rules = [{"rule": "self.x > 0", "message": "`x` must be positive"}]
    for node in (
        everything["properties"]["point"],
        everything["properties"]["points"]["items"],
        everything["properties"]["byName"]["additionalProperties"],
    ):
        assert node["x-kubernetes-validations"] == rules


def test_defaults_only_of_constant_scalars_outside_lists(everything: Schema) -> None:
    defaults = {path: node["default"] for path, node in walk(everything) if "default" in node}
    assert defaults == {"point.name": "p", "count": 3, "flag": False}


def test_unions_of_scalars(everything: Schema) -> None:
    assert everything["properties"]["anyScalar"] == {"x-kubernetes-preserve-unknown-fields": True}
    assert everything["properties"]["count"] == {"x-kubernetes-int-or-string": True, "default": 3}


@pytest.mark.parametrize(
    ("model", "message"),
    [(Endless, "`Endless` contains itself"), (Mixed, "one type a field")],
)
def test_types_without_a_structural_schema(model: type[BaseModel], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        structural_schema(model, defaults=True)


def _without(path: str, key: str) -> Callable[[Schema], object]:
    return lambda schema: dict(walk(schema))[path].pop(key)


def _with(path: str, **values: Any) -> Callable[[Schema], object]:
    return lambda schema: dict(walk(schema))[path].update(values)


@pytest.mark.parametrize(
    ("plant", "fault"),
    [
        (_without("spec.training.seed", "type"), "spec.training.seed: `type` must be one of"),
        (_with("spec.model.uri", type=["string"]), "spec.model.uri: `type` must be one of"),
        (_without("spec.model.uri", "maxLength"), "spec.model.uri: `string` needs `maxLength`"),
        (_without("spec.datasets", "maxItems"), "spec.datasets: `array` needs `maxItems`"),
        (_without("spec.training.extraArguments", "maxProperties"), "a map needs `maxProperties`"),
        (_with("spec.data", additionalProperties=False), "exclude each other"),
        (_with("spec.stage", nullable=True), "spec.stage: `nullable` is not permitted"),
        (_with("spec.stage", anyOf=[]), "spec.stage: `anyOf` is not permitted"),
        (_with("spec.stage", default="none"), "spec.stage: a default that is not in `enum`"),
        (_with("spec.lora", default={}), "spec.lora: a default that is no constant scalar"),
        (_with("spec.datasets[].name", default="x"), "a default inside list or map items"),
        (_with("spec.lora.dropout", exclusiveMaximum=1), "`exclusiveMaximum` is a flag"),
        (_without("spec.training.seed", "format"), "an integer needs `format: int64`"),
        (_without("spec.datasets", "x-kubernetes-list-type"), "x-kubernetes-list-type"),
        (_without("spec.exports[]", "required"), "list map key `name` must be a required field"),
        (_without("spec.exports", "x-kubernetes-list-map-keys"), "x-kubernetes-list-map-keys"),
        (_without("spec.datasets", "items"), "spec.datasets: an array needs `items`"),
        (_with("spec", required=["nothing"]), "spec: required `nothing` is no property"),
        (_without("spec.output", "properties"), "spec.output: an object needs `properties`"),
        (_with("spec", **{"x-kubernetes-validations": [{"rule": "true"}]}), "needs a message"),
    ],
)
def test_linter_finds_planted_faults(plant: Callable[[Schema], object], fault: str) -> None:
    schema = copy.deepcopy(resource_schema(RESOURCES[0]))
    known = lint_structural(schema)
    plant(schema)
    found = [text for text in lint_structural(schema) if text not in known]
    assert any(fault in text for text in found), found


@pytest.mark.parametrize("module", [crd, reference])
def test_check_names_what_drifted(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["generator", str(tmp_path)])
    assert module.main() == 0
    monkeypatch.setattr("sys.argv", ["generator", "--check", str(tmp_path)])
    assert module.main() == 0
    first, second, *_ = sorted(tmp_path.iterdir())
    first.write_text("edited\n")
    second.unlink()
    assert module.main() == 1
    named = capsys.readouterr().err
    assert first.name in named
    assert second.name in named
