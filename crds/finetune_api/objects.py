"""The kinds of the API, and how a manifest becomes one of them."""

import json
import re
from typing import Any

from pydantic import ValidationError

from finetune_api.base import API_VERSION, Model
from finetune_api.datasetregistration import DatasetRegistration
from finetune_api.errors import Refusal, explain, nearest, shown
from finetune_api.finetunejob import FineTuneJob
from finetune_api.modelexport import ModelExport

Resource = FineTuneJob | DatasetRegistration | ModelExport

KINDS: dict[str, type[Resource]] = {
    "DatasetRegistration": DatasetRegistration,
    "FineTuneJob": FineTuneJob,
    "ModelExport": ModelExport,
}
TOP_FIELDS = ("apiVersion", "kind", "metadata", "spec", "status")
NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
SHORT_NAMES = {"ftj": "FineTuneJob", "dreg": "DatasetRegistration", "mex": "ModelExport"}


def plural(kind: str) -> str:
    """Return the name of a kind in URLs and on the command line."""
    return f"{kind.lower()}s"


def parse(body: dict[str, Any]) -> Resource:
    """Turn a manifest into its class.

    Raises:
        Refusal: every problem found, each naming its field.
    """
    kind = _kind(body)
    if unknown := sorted(set(body) - set(TOP_FIELDS)):
        raise Refusal([f"`{name}`: unknown field; {nearest(name, TOP_FIELDS)}" for name in unknown])
    fields = {key: value for key, value in body.items() if key not in ("apiVersion", "kind")}
    try:
        # As JSON and strict: an API server does not take "16" for 16 either.
        resource = KINDS[kind].model_validate_json(
            json.dumps(without_nulls(fields)), strict=True, by_alias=True, by_name=False
        )
    except ValidationError as error:
        raise Refusal(explain(error, root=KINDS[kind], path="")) from error
    namespace = resource.metadata.namespace
    if not NAMESPACE.fullmatch(namespace):
        raise Refusal([
            f"`metadata.namespace`: {shown(namespace)} is refused; it must be 1 to 63 lower-case"
            " letters, digits and '-', no '-' at an end; change it accordingly"
        ])  # fmt: skip
    return resource


def _kind(body: dict[str, Any]) -> str:
    """Return the kind of a manifest.

    Raises:
        Refusal: it, or its version, is none of ours.
    """
    kind, version = body.get("kind"), body.get("apiVersion")
    if not isinstance(kind, str) or kind not in KINDS:
        state = "missing" if kind is None else f"{shown(kind)} is unknown"
        raise Refusal([f"`kind`: {state}; it must be one of {', '.join(KINDS)}; set it to one"])
    if version != API_VERSION:
        state = "missing" if version is None else f"{shown(version)} is unknown"
        raise Refusal([f"`apiVersion`: {state}; it must be '{API_VERSION}'; write that"])
    return kind


def dump(resource: Model) -> dict[str, Any]:
    """Return an object as JSON would hold it; unset fields are left out."""
    body: dict[str, Any] = resource.model_dump(mode="json", by_alias=True, exclude_none=True)
    return body


def without_nulls(value: Any) -> Any:
    """Return a value without its nulls: an API server drops them, and an unset field is unset."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value
