"""Claims that the operator makes: a job's working claim, and its own output."""

from typing import Any

from finetune_operator.manifests import labels
from finetune_operator.manifests.job import owner_reference
from finetune_operator.plan import StepRun
from finetune_operator.settings import ClaimDefaults


def work_claim(run: StepRun, uid: str, defaults: ClaimDefaults) -> dict[str, Any]:
    """Return the claim of a job's working files; it goes with the job."""
    manifest = _claim(run, uid, run.work_claim, _merged(run, defaults))
    manifest["metadata"]["ownerReferences"] = [owner_reference(run, uid)]
    return manifest


def _merged(run: StepRun, defaults: ClaimDefaults) -> ClaimDefaults:
    """Return what a working claim asks for: the job's word, the profile's, the operator's."""
    profile = run.placement.profile
    given = [run.placement.storage, profile.storage if profile else None]
    found = [settings for settings in given if settings is not None]
    return ClaimDefaults(
        class_name=next((s.class_name for s in found if s.class_name), defaults.class_name),
        size=next((s.size for s in found if s.size), defaults.size),
        access_mode=next((s.access_mode for s in found if s.access_mode), defaults.access_mode),
    )


def output_claim(run: StepRun, uid: str, name: str, defaults: ClaimDefaults) -> dict[str, Any]:
    """Return the claim of an output; it has no owner, so that it stays when the object goes."""
    return _claim(run, uid, name, defaults)


def _claim(run: StepRun, uid: str, name: str, defaults: ClaimDefaults) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "accessModes": [str(defaults.access_mode)],
        "resources": {"requests": {"storage": defaults.size}},
    }
    if defaults.class_name is not None:
        spec["storageClassName"] = defaults.class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": name,
            "namespace": run.owner.namespace,
            "labels": labels.owner_labels(run.owner, uid),
        },
        "spec": spec,
    }
