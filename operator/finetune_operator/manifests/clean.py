"""The Job that removes an output from a user's claim, when its object goes and nothing is retained."""

import hashlib
from typing import Any

from finetune_operator.manifests.labels import MANAGER
from finetune_operator.manifests.pod import CONTAINER, POD_SECURITY, RESTRICTED
from finetune_operator.manifests.volumes import FOLDERS, claim_of
from finetune_operator.plan import Key
from finetune_operator.settings import Settings

KEPT_SECONDS = 300
LONGEST_SECONDS = 86_400
TRIES = 4


def cleaning_job(key: Key, uid: str, location: str, settings: Settings) -> dict[str, Any]:
    """Return a Job that removes one folder of a claim; it belongs to nobody and removes itself."""
    claim = claim_of(location)
    digest = hashlib.sha256(f"{uid}/{location}".encode()).hexdigest()[:8]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": f"{key.name[:40].rstrip('-')}-clean-{digest}",
            "namespace": key.namespace,
            "labels": {"app.kubernetes.io/managed-by": MANAGER},
        },
        "spec": {
            "backoffLimit": TRIES,
            # A claim that is gone, or that no node can mount, must not keep it for ever.
            "activeDeadlineSeconds": LONGEST_SECONDS,
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "template": {
                "metadata": {"labels": {"app.kubernetes.io/managed-by": MANAGER}},
                "spec": _pod(location, claim, key, settings),
            },
        },
    }


def _pod(location: str, claim: str, key: Key, settings: Settings) -> dict[str, Any]:
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": POD_SECURITY,
        "imagePullSecrets": [{"name": name} for name in settings.images.pull_secrets],
        "containers": [
            {
                "name": CONTAINER,
                "image": settings.images.prepare or settings.images.trainer,
                "imagePullPolicy": settings.images.pull_policy,
                "args": ["clean", "--location", location, "--claims", FOLDERS.claims,
                         "--owner", f"{key.namespace}/{key.name}", "--kind", key.kind],
                "securityContext": RESTRICTED,
                "volumeMounts": [{"name": "claim", "mountPath": f"{FOLDERS.claims}/{claim}"}],
            }
        ],
        "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": claim}}],
    }  # fmt: skip
