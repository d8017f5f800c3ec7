"""The kinds of the API, and how a manifest becomes one of them."""

import json
from typing import Any

from pydantic import ValidationError

from finetune_api.base import API_VERSION, Model
from finetune_api.datasetregistration import DatasetRegistration
from finetune_api.errors import Refusal, explain, shown
from finetune_api.finetunejob import FineTuneJob
from finetune_api.modelexport import ModelExport

Resource = FineTuneJob | DatasetRegistration | ModelExport

KINDS: dict[str, type[Resource]] = {
    "DatasetRegistration": DatasetRegistration,
    "FineTuneJob": FineTuneJob,
    "ModelExport": ModelExport,
}
SHORT_NAMES = {"ftj": "FineTuneJob", "dreg": "DatasetRegistration", "mex": "ModelExport"}


def plural(kind: str) -> str:
    """Return the name of a kind in URLs and on the command line."""
    return f"{kind.lower()}s"


def parse(body: dict[str, Any]) -> Resource:
    """Turn a manifest into its class.

    Raises:
        Refusal: every problem found, each naming its field.
    """
    kind = body.get("kind")
    if kind not in KINDS:
        raise Refusal([f"`kind`: {shown(kind)} is unknown; it must be one of {', '.join(KINDS)}"])
    if body.get("apiVersion") != API_VERSION:
        version = shown(body.get("apiVersion"))
        raise Refusal([f"`apiVersion`: {version} is unknown; it must be '{API_VERSION}'"])
    known = {"apiVersion", "kind", "metadata", "spec", "status"}
    if unknown := sorted(set(body) - known):
        raise Refusal([f"`{unknown[0]}`: unknown field; known here: {', '.join(sorted(known))}"])
    fields = {key: value for key, value in body.items() if key not in ("apiVersion", "kind")}
    try:
        # As JSON and strict: an API server does not take "16" for 16 either.
        return KINDS[kind].model_validate_json(
            json.dumps(_without_nulls(fields)), strict=True, by_alias=True, by_name=False
        )
    except ValidationError as error:
        raise Refusal(explain(error, root=KINDS[kind], path="")) from error


def dump(resource: Model) -> dict[str, Any]:
    """Return an object as JSON would hold it; unset fields are left out."""
    body: dict[str, Any] = resource.model_dump(mode="json", by_alias=True, exclude_none=True)
    return body


def _without_nulls(value: Any) -> Any:
    """Return a value without its nulls: an API server drops them, and an unset field is unset."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
