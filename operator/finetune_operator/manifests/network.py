"""Who reaches the pods of a step, and what they do not reach."""

from typing import Any

from finetune_operator.manifests import labels
from finetune_operator.manifests.job import owner_reference
from finetune_operator.plan import StepRun

METADATA_ADDRESSES = {
    "0.0.0.0/0": ["169.254.169.254/32", "100.100.100.200/32"],
    "::/0": ["fd00:ec2::254/128"],
}
"""Where clouds hand a node's credentials to whoever asks from it: but for these, all addresses are open."""


def network_policy(run: StepRun, uid: str) -> dict[str, Any]:
    """Return the policy of a step's pods: nobody reaches them; they reach all but metadata addresses.

    Only what the processes of one pod tell each other has no authentication (PyTorch's store).
    """
    marks = labels.step_labels(run.owner, uid, run=run.job_file.run, step=run.step)
    selected = {name: marks[name] for name in (labels.UID, labels.RUN, labels.STEP)}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": run.shared_name,
            "namespace": run.owner.namespace,
            "labels": marks,
            "ownerReferences": [owner_reference(run, uid)],
        },
        "spec": {
            "podSelector": {"matchLabels": selected},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [],
            "egress": [_everything(run)],
        },
    }


def _everything(run: StepRun) -> dict[str, Any]:
    """Return the rule of what may be reached."""
    profile = run.placement.profile
    if profile is not None and profile.allow_metadata_address:
        return {}
    blocks = [
        {"ipBlock": {"cidr": cidr, "except": but}} for cidr, but in METADATA_ADDRESSES.items()
    ]
    # Not every network takes pods for addresses.
    return {"to": [{"namespaceSelector": {}}, *blocks]}
