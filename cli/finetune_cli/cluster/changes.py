"""`finetune delete`, `suspend`, `resume`: small changes, and what follows from them."""

from finetune_api.errors import Refusal
from finetune_api.finetunejob import FineTuneJob
from finetune_cli.cluster.connection import MANAGER, MERGE_PATCH, Cluster
from finetune_cli.cluster.objects import is_over, path_of_kind, read, read_job, typed
from finetune_cli.cluster.results import claims, is_retained, results


def delete(cluster: Cluster, kind: str, name: str) -> None:
    """Delete an object; say what stays."""
    resource = typed(read(cluster, kind, name))
    path = path_of_kind(kind, cluster.namespace, name)
    options = {
        "kind": "DeleteOptions",
        "apiVersion": "v1",
        # Not another object that has got the same name meanwhile.
        "preconditions": {"uid": resource.metadata.uid},
        "propagationPolicy": "Background",
    }
    answer = cluster.call("DELETE", path, body=options)
    is_gone = answer.get("kind") == "Status" or not answer["metadata"].get("finalizers")
    said = "deleted" if is_gone else "is being deleted: the operator ends what runs first"
    print(f"{kind.lower()}/{name} {said}")
    made = results(resource)
    if not made:
        return
    where = ", ".join(uri for _, uri, _ in made)
    held = f" on claim {', '.join(held_by)}" if (held_by := claims(resource)) else ""
    print(f"its output {'stays' if is_retained(resource) else 'goes with it'}{held}: {where}")


def set_suspended(cluster: Cluster, name: str, *, suspend: bool) -> None:
    """Ask that a job is suspended or goes on; say what follows.

    Raises:
        Refusal: it has ended.
    """
    job = read_job(cluster, name)
    if is_over(job):
        raise Refusal([
            f"FineTuneJob '{name}' has ended ({job.status.phase}); to run it again, raise"
            f" `spec.rerun` above {job.spec.rerun} in its manifest and submit it"
        ])  # fmt: skip
    if job.spec.suspend == suspend:
        print(f"finetunejob/{name} {'is suspended already' if suspend else 'is not suspended'}")
        return
    cluster.call(
        "PATCH",
        path_of_kind("FineTuneJob", cluster.namespace, name),
        query={"fieldManager": MANAGER, "fieldValidation": "Strict"},
        body={"spec": {"suspend": suspend}},
        content_type=MERGE_PATCH,
    )
    print(f"finetunejob/{name} {_suspends(cluster, job) if suspend else 'goes on'}")


def _suspends(cluster: Cluster, job: FineTuneJob) -> str:
    resume = cluster.hint("resume", job.metadata.name)
    return f"suspends: it saves a checkpoint and releases its machines; to go on: {resume}"
