"""The pods of an object's steps, found by the labels that the operator gives them."""

from typing import Any

from finetune_api.objects import Resource
from finetune_cli.cluster.connection import Cluster
from finetune_cli.cluster.objects import ATTEMPT, BATCH, CORE, KIND, NAME, RUN, STEP, UID, path_of

CONTAINER = "step"
INDEX = "batch.kubernetes.io/job-completion-index"
NEVER_STARTED = 400


def selector(resource: Resource, **labels: str) -> str:
    """Return the labels of what was made for an object."""
    metadata = resource.metadata
    wanted = {KIND: type(resource).__name__, NAME: metadata.name, UID: metadata.uid, **labels}
    return ",".join(f"{key}={value}" for key, value in wanted.items())


def pods_of(cluster: Cluster, resource: Resource) -> list[dict[str, Any]]:
    """Return the pods of an object; first those of the first run and attempt."""
    return _of(cluster, resource, path_of(CORE, "pods", resource.metadata.namespace))


def jobs_of(cluster: Cluster, resource: Resource) -> list[dict[str, Any]]:
    """Return the Kubernetes Jobs of an object: one an attempt."""
    return _of(cluster, resource, path_of(BATCH, "jobs", resource.metadata.namespace))


def _of(cluster: Cluster, resource: Resource, path: str) -> list[dict[str, Any]]:
    return sorted(cluster.items(path, labelSelector=selector(resource)), key=_order)


def _order(item: dict[str, Any]) -> tuple[int, str, int]:
    """Return run, time of creation, and minus the index: the newest comes last, rank 0 after others."""
    labels = item["metadata"].get("labels", {})
    index = int(labels.get(INDEX, 0))
    return int(labels.get(RUN, 0)), item["metadata"]["creationTimestamp"], -index


def step_of(pod: dict[str, Any]) -> str:
    """Return the step that a pod is of."""
    return str(pod["metadata"].get("labels", {}).get(STEP, ""))


def attempt_of(pod: dict[str, Any]) -> int:
    """Return the number of the attempt that a pod is of."""
    return int(pod["metadata"].get("labels", {}).get(ATTEMPT, 0))


def run_of(pod: dict[str, Any]) -> int:
    """Return the number of the run that a pod is of."""
    return int(pod["metadata"].get("labels", {}).get(RUN, 0))


def node_of(pod: dict[str, Any]) -> str:
    """Return the node that a pod runs on; nothing if it was not placed."""
    return str(pod["spec"].get("nodeName", ""))


def waiting_of(pod: dict[str, Any]) -> str:
    """Return what a pod waits for, in its own words; nothing if it does not wait."""
    status = pod.get("status", {})
    for container in status.get("containerStatuses") or []:
        if waiting := container.get("state", {}).get("waiting"):
            return f"{waiting.get('reason', 'waiting')}: {waiting.get('message', '')}".rstrip(": ")
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{condition.get('reason', '')}: {condition.get('message', '')}".rstrip(": ")
    return ""
