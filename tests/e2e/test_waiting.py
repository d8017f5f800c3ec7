"""Whatever a job waits for is told: by condition, reason and event that name the object."""

import json
import time
from typing import Any

from tests.cluster import Cluster
from tests.e2e.lab import Lab
from tests.e2e.operators import OperatorProcess

TOLD_SECONDS = 15.0


def told(lab: Lab, name: str, reason: str, *words: str, kind: str = "finetunejob") -> None:
    """Wait until an object says what it waits for, and check when and where it was said."""
    body = lab.wait(
        kind, name, lambda b: b.get("status", {}).get("reason") == reason, what=reason, seconds=60
    )
    missing = [word for word in words if word not in body["status"]["message"]]
    assert not missing, f"{missing} not in: {body['status']['message']}"
    since = _since(lab, body, name)
    conditions = [c for c in body["status"]["conditions"] if c["reason"] == reason]
    assert conditions, body["status"]["conditions"]
    until = time.monotonic() + 5
    while True:
        events = [
            e for e in lab.listed("events")
            if e["involvedObject"]["name"] == name and e["reason"] == reason
        ]  # fmt: skip
        if events or time.monotonic() > until:
            break
    assert events, f"no event {reason} of {name}"
    assert all(word in events[0]["message"] for word in words)
    first = min(e["firstTimestamp"] for e in events)
    assert _seconds(first) - since <= TOLD_SECONDS, f"{name}: {first} after {since}"


def _since(lab: Lab, body: dict[str, Any], name: str) -> float:
    """Return when what waits was made: the newest Job or pod of the object, or the object."""
    children = lab.listed("jobs,pods", f"finetune.dev/name={name}")
    return max(_seconds(b["metadata"]["creationTimestamp"]) for b in [body, *children])


def _seconds(text: str) -> float:
    return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))


def test_what_a_job_waits_for(lab: Lab, operator: OperatorProcess) -> None:
    lab.apply(lab.dataset())
    lab.wait("dreg", "rows", lambda b: b.get("status", {}).get("phase") == "Ready", what="ready")
    hub = {"uri": "hf://org/name", "credentialsSecretRef": {"name": "no-such-secret"}}
    gpus = {"gpusPerNode": 8, "pod": {"nodeSelector": {"gpus": "many"}}}
    lab.apply(
        lab.job("wants-data", datasets=[{"name": "not-there"}]),
        lab.job("wants-secret", model=hub),
        lab.job("wants-claim", model={"uri": "pvc://no-such-claim/model"}),
        lab.job("wants-node", workers=gpus, training={"globalBatchSize": 8}),
        lab.job("wants-profile", workers={"profileRef": {"name": "no-such-profile"}}),
        lab.job("wants-turn", scheduling={"queueName": "research"}),
        lab.export("wants-job", source={"jobRef": {"name": "no-such-job"}}),
    )
    told(lab, "wants-data", "DatasetNotFound", "not-there", "spec.datasets")
    told(lab, "wants-profile", "ProfileNotFound", "no-such-profile", "spec.workers.profileRef")
    told(lab, "wants-job", "JobNotFound", "no-such-job", "spec.source.jobRef", kind="modelexport")
    told(lab, "wants-turn", "Queued", "suspended", "Workload")
    told(lab, "wants-claim", "ClaimNotFound", "no-such-claim", "create")
    told(lab, "wants-node", "NoNodeFits", "0/2 nodes are available", "spec.workers")
    told(lab, "wants-secret", "SecretNotFound", "no-such-secret", "create")
    lab.apply(lab.dataset("not-there"))
    # What was waited for came: each goes on by itself.
    lab.kubectl("create", "secret", "generic", "no-such-secret", "--from-literal=HF_TOKEN=x")
    admit_like_a_queue(lab, "wants-turn")
    lab.wait("ftj", "wants-data", lambda b: b["status"].get("data"), what="prepared")
    lab.wait("ftj", "wants-turn", lambda b: b["status"].get("data"), what="prepared")


def admit_like_a_queue(lab: Lab, name: str) -> None:
    """Do what Kueue does when it admits a Job: unsuspend it, and choose its nodes."""
    for job in lab.listed("jobs", f"finetune.dev/name={name}"):
        assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
        assert job["spec"]["suspend"] is True
        change = {"spec": {"suspend": False, "template": {"spec": {"nodeSelector": {
            "kubernetes.io/os": "linux"}}}}}  # fmt: skip
        lab.kubectl(
            "patch", "job", job["metadata"]["name"], "--type=merge", f"--patch={json.dumps(change)}"
        )


def test_an_image_that_cannot_be_pulled(lab: Lab, operator_process: OperatorProcess) -> None:
    operator_process.settings["images"] = {
        "trainer": "localhost/no-such-image:1",
        "pullPolicy": "Never",
    }
    operator_process.start()
    operator_process.wait_until_leading()
    lab.apply(lab.dataset("unseen"))
    told(lab, "unseen", "ImageNotPulled", "no-such-image", "correct", kind="datasetregistration")


def test_a_quota_is_exceeded(
    own_cluster: Cluster, namespace: str, operator: OperatorProcess
) -> None:
    lab = Lab(own_cluster, namespace)
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "no-pods"},
             "spec": {"hard": {"pods": "0"}}}  # fmt: skip
    lab.apply(quota)
    lab.wait("quota", "no-pods", lambda b: b.get("status", {}).get("hard"), what="in force")
    lab.apply(lab.dataset("barred"))
    told(lab, "barred", "QuotaExceeded", "no-pods", "quota", kind="datasetregistration")
