"""The labels of everything that the operator makes: by them it finds its own, and people do."""

from finetune_api.base import GROUP
from finetune_operator.plan import Key

MANAGER = "finetune-operator"
KIND = f"{GROUP}/kind"
NAME = f"{GROUP}/name"
UID = f"{GROUP}/uid"
RUN = f"{GROUP}/run"
STEP = f"{GROUP}/step"
ATTEMPT = f"{GROUP}/attempt"
CONFIG = f"{GROUP}/config"
"""Annotation: the ConfigMap that all attempts at a step share."""


def owner_labels(owner: Key, uid: str) -> dict[str, str]:
    """Return the labels of what belongs to an object, whatever the run."""
    return {
        "app.kubernetes.io/managed-by": MANAGER,
        KIND: owner.kind,
        NAME: owner.name,
        UID: uid,
    }


def step_labels(owner: Key, uid: str, *, run: int, step: str) -> dict[str, str]:
    """Return the labels of what belongs to a step of a run."""
    return {**owner_labels(owner, uid), RUN: str(run), STEP: step}
