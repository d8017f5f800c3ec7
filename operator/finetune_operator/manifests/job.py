"""An attempt at a step: one Indexed Job, and the ConfigMap that all attempts of the step share."""

import json
from typing import Any

from finetune_api.base import API_VERSION
from finetune_api.contract import Receiver
from finetune_operator.manifests import labels
from finetune_operator.manifests.pod import arguments, pod_marks, pod_spec
from finetune_operator.manifests.reporting import receiver_of
from finetune_operator.manifests.volumes import AUTHORITIES_KEY, FOLDERS
from finetune_operator.plan import StepRun
from finetune_operator.settings import Settings

JOB_KEY = "job.json"
TEMPLATE_KEY = "pod.json"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


def owner_reference(run: StepRun, uid: str) -> dict[str, Any]:
    """Return the reference by which a child is collected with its owner."""
    return {
        "apiVersion": API_VERSION,
        "kind": run.owner.kind,
        "name": run.owner.name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def config_map(
    run: StepRun, uid: str, settings: Settings, *, authorities: str = ""
) -> dict[str, Any]:
    """Return what is frozen at a step's first attempt: its job file and its pod.

    Later attempts take both from there, whatever operator, profile or settings have become.
    `authorities`: certificates that the receiver of progress is known by; empty: there is none.
    """
    receiver = receiver_of(run, settings) if authorities else None
    file = run.job_file.model_copy(
        update={
            "attempt": 1,
            "micro_batch_divisor": 1,
            "folders": FOLDERS,
            "receiver": receiver,
            # A job waits until the pods of an earlier one of its name have ended.
            "takes_over": True,
        }
    )
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": run.shared_name,
            "namespace": run.owner.namespace,
            "labels": labels.step_labels(run.owner, uid, run=file.run, step=run.step),
            "ownerReferences": [owner_reference(run, uid)],
        },
        "immutable": True,
        "data": {
            JOB_KEY: file.model_dump_json(by_alias=True, exclude_none=True),
            TEMPLATE_KEY: json.dumps(_template(run, settings, receiver), sort_keys=True),
            **({AUTHORITIES_KEY: authorities} if receiver else {}),
        },
    }


def _template(run: StepRun, settings: Settings, receiver: Receiver | None) -> dict[str, Any]:
    marks, notes = pod_marks(run)
    scheduling = run.placement.scheduling
    return {
        "labels": marks,
        "annotations": notes,
        "queue": (scheduling.queue_name if scheduling else None) or "",
        "spec": pod_spec(run, settings, receiver),
    }


def job(run: StepRun, uid: str, frozen: dict[str, Any]) -> dict[str, Any]:
    """Return the Job of an attempt, made from what was frozen."""
    file = run.job_file
    attempt_labels = {
        **labels.step_labels(run.owner, uid, run=file.run, step=run.step),
        labels.ATTEMPT: str(file.attempt),
    }
    template = json.loads(frozen["data"][TEMPLATE_KEY])
    pod, queue = template["spec"], template["queue"]
    attempt_labels = {**template["labels"], **attempt_labels}
    pod["containers"][0]["args"] = arguments(
        attempt=file.attempt, micro_batch_divisor=file.micro_batch_divisor
    )
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": run.name,
            "namespace": run.owner.namespace,
            "labels": {**attempt_labels, **({QUEUE_LABEL: queue} if queue else {})},
            "annotations": {**template["annotations"], labels.CONFIG: run.shared_name},
            "ownerReferences": [owner_reference(run, uid)],
        },
        "spec": {
            "completionMode": "Indexed",
            "completions": 1,
            "parallelism": 1,
            # A new attempt is a new Job: the whole gang comes back together, or not at all.
            "backoffLimit": 0,
            **({"suspend": True} if queue else {}),
            "template": {
                "metadata": {"labels": attempt_labels, "annotations": template["annotations"]},
                "spec": pod,
            },
        },
    }
