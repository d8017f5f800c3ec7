"""Objects and manifests for tests: short to write, valid unless told otherwise."""

from typing import Any

API = "finetune.dev/v1alpha1"


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest with changes merged in; a value of None removes the field."""
    result = dict(base)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


def a_dataset(name: str = "rows", **spec: Any) -> dict[str, Any]:
    """Return a DatasetRegistration manifest."""
    base: dict[str, Any] = {"source": {"uri": "file://rows.jsonl"}}
    return {
        "apiVersion": API,
        "kind": "DatasetRegistration",
        "metadata": {"name": name},
        "spec": merged(base, spec),
    }


def a_job(name: str = "tiny", **spec: Any) -> dict[str, Any]:
    """Return a FineTuneJob manifest: a tiny model on the CPU, 32-bit, a few steps."""
    base: dict[str, Any] = {
        "model": {"uri": "file://model"},
        "datasets": [{"name": "rows"}],
        "lora": {"rank": 4, "dropout": 0.1},
        "training": {
            "maxSteps": 6,
            "globalBatchSize": 4,
            "learningRate": 1e-2,
            "precision": "fp32",
        },
        "workers": {"gpusPerNode": 0},
        "checkpoint": {"everySteps": 2},
    }
    return {
        "apiVersion": API,
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": merged(base, spec),
    }


def an_export(name: str = "merged", **spec: Any) -> dict[str, Any]:
    """Return a ModelExport manifest."""
    base: dict[str, Any] = {"source": {"jobRef": {"name": "tiny"}}, "format": "huggingface"}
    return {
        "apiVersion": API,
        "kind": "ModelExport",
        "metadata": {"name": name},
        "spec": merged(base, spec),
    }
