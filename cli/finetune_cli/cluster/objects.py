"""Our objects on the server, as they stand there, and what is known of them besides."""

from typing import Any
from urllib.parse import quote

from pydantic import ValidationError

from finetune_api.base import API_VERSION, GROUP
from finetune_api.errors import Refusal, explain, nearest
from finetune_api.finetunejob import FineTuneJob
from finetune_api.objects import KINDS, Resource, plural
from finetune_cli.cluster.connection import Cluster
from finetune_cli.cluster.refusals import Refused
from finetune_cli.words import Problem, one_line

CORE, BATCH, OURS = "/api/v1", "/apis/batch/v1", f"/apis/{API_VERSION}"
KIND, NAME, UID = f"{GROUP}/kind", f"{GROUP}/name", f"{GROUP}/uid"
RUN, STEP, ATTEMPT = f"{GROUP}/run", f"{GROUP}/step", f"{GROUP}/attempt"
"""Labels of everything that the operator makes; a contract, like the names of the API."""
NOT_SEEN = {
    "phase": "Pending",
    "reason": "NotSeen",
    "message": "no operator has looked at it yet",
}


def path_of(group: str, resource: str, namespace: str, name: str = "") -> str:
    """Return the path of a resource of a namespace; of all namespaces if that is empty."""
    where = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    return f"{group}{where}/{resource}" + (f"/{quote(name, safe='')}" if name else "")


def path_of_kind(kind: str, namespace: str, name: str = "") -> str:
    """Return the path of objects of one of our kinds."""
    return path_of(OURS, plural(kind), namespace, name)


def read(cluster: Cluster, kind: str, name: str) -> dict[str, Any]:
    """Return an object as the server holds it.

    Raises:
        Refusal: there is none of that name.
    """
    try:
        return cluster.get(path_of_kind(kind, cluster.namespace, name))
    except Refused as refused:
        if refused.status != 404:
            raise
        raise Refusal([_not_there(cluster, kind, name)]) from refused


def _not_there(cluster: Cluster, kind: str, name: str) -> str:
    said = f"{kind} '{name}' does not exist in namespace '{cluster.namespace}'"
    try:
        page = cluster.get(path_of_kind(kind, cluster.namespace), limit="50")
    except (Problem, Refusal):
        return said
    names = [item["metadata"]["name"] for item in page["items"]]
    if not names:
        return f"{said}, nor any other; name the right namespace with -n"
    return f"{said}; {nearest(name, names)}".removesuffix("; remove it or rename it")


def listed(cluster: Cluster, kind: str, *, everywhere: bool = False) -> list[dict[str, Any]]:
    """Return the objects of a kind, in one namespace or in all."""
    path = path_of_kind(kind, "" if everywhere else cluster.namespace)
    items = [{"apiVersion": API_VERSION, "kind": kind, **item} for item in cluster.items(path)]
    return sorted(items, key=lambda o: (o["metadata"]["namespace"], o["metadata"]["name"]))


def presentable(body: dict[str, Any]) -> dict[str, Any]:
    """Return an object without bookkeeping, and with words for the time before it was looked at."""
    metadata = {k: v for k, v in body["metadata"].items() if k != "managedFields"}
    status = body.get("status", {})
    return {
        **body,
        "metadata": metadata,
        "status": status if "phase" in status else {**NOT_SEEN, **status},
    }


def typed(body: dict[str, Any]) -> Resource:
    """Return an object as its class.

    Raises:
        Problem: it has fields that this version does not know.
    """
    kind = str(body["kind"])
    fields = {key: value for key, value in body.items() if key not in ("apiVersion", "kind")}
    try:
        return KINDS[kind].model_validate(fields)
    except ValidationError as error:
        problems = "; ".join(explain(error, root=KINDS[kind], path=""))
        raise Problem(
            f"this `finetune` cannot read {kind} '{body['metadata']['name']}' of the cluster"
            f" ({problems}); use the version of `finetune` that fits the cluster's"
        ) from error


def read_job(cluster: Cluster, name: str) -> FineTuneJob:
    """Return a FineTuneJob.

    Raises:
        Refusal: there is none of that name.
    """
    job = typed(read(cluster, "FineTuneJob", name))
    assert isinstance(job, FineTuneJob)
    return job


def events_of(cluster: Cluster, uid: str, **selected: str) -> list[dict[str, str]]:
    """Return the events of an object by its UID, oldest first."""
    fields = {"involvedObject.uid": uid, **selected}
    selector = ",".join(f"{key}={value}" for key, value in fields.items())
    items = cluster.items(path_of(CORE, "events", cluster.namespace), fieldSelector=selector)
    return sorted((_event(item) for item in items), key=lambda event: event["time"])


def _event(item: dict[str, Any]) -> dict[str, str]:
    series = item.get("series") or {}
    time = item.get("lastTimestamp") or series.get("lastObservedTime") or item.get("eventTime")
    about = item.get("involvedObject") or {}
    return {
        "time": _to_seconds(time or item["metadata"].get("creationTimestamp") or ""),
        "type": str(item.get("type", "")),
        "reason": str(item.get("reason", "")),
        "message": one_line(str(item.get("message", ""))),
        "about": f"{about.get('kind', '')} {about.get('name', '')}",
    }


def _to_seconds(time: str) -> str:
    """Return a time without fractions of a second, as our own times are."""
    return time.split(".")[0].removesuffix("Z") + "Z" if time else ""


def is_over(resource: Resource) -> bool:
    """Tell whether an object has come to its end, of the run and the spec that are asked for now."""
    status, metadata = resource.status, resource.metadata
    finished = any(c.type == "Finished" and c.status == "True" for c in status.conditions)
    if not isinstance(resource, FineTuneJob):
        return finished and status.observed_generation == metadata.generation
    # A job that was refused before its first attempt may try again with a new spec.
    stale = not status.attempts and status.observed_generation != metadata.generation
    return finished and resource.status.run == resource.spec.rerun + 1 and not stale
