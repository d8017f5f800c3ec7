"""Claims: bound to one node, and outputs that outlive everything."""

import time

import pytest

from tests.cluster import Cluster
from tests.e2e.lab import Lab, apply_crds, crd_paths, result
from tests.e2e.operators import OperatorProcess

LOCAL = {"className": "node-local", "accessMode": "ReadWriteOnce", "size": "1Gi"}


def test_a_claim_of_one_node_strands_no_training(
    lab: Lab, operator_process: OperatorProcess, own_cluster: Cluster
) -> None:
    """Both claims are bound where the first pod goes: prepare must go where training can."""
    operator_process.settings["output"] = LOCAL
    operator_process.start()
    operator_process.wait_until_leading()
    where = {"pod": {"nodeSelector": {"kubernetes.io/hostname": "node-1"}}}
    lab.apply(lab.dataset(), lab.job("bound", storage=LOCAL, workers=where))
    body = lab.succeeded("bound")
    pods = lab.listed("pods", "finetune.dev/name=bound")
    assert {pod["spec"]["nodeName"] for pod in pods} == {"node-1"}
    claims = {c["metadata"]["name"]: c for c in lab.listed("pvc", "finetune.dev/name=bound")}
    assert {c["spec"]["storageClassName"] for c in claims.values()} == {"node-local"}
    assert result(lab.output("bound")).losses
    assert body["status"]["artifacts"][0]["uri"].startswith("pvc://bound-output/")


def test_outputs_outlive_ttl_and_delete(lab: Lab, operator: OperatorProcess) -> None:
    lab.apply(lab.dataset(), lab.job("brief", ttlSecondsAfterFinished=1), lab.job("whole"))
    lab.succeeded("brief")
    lab.succeeded("whole")
    gone = "finetune.dev/name=brief"
    until = time.monotonic() + 60
    while lab.listed("jobs,pods,configmaps,networkpolicies", gone):
        assert time.monotonic() < until, lab.story()
        time.sleep(0.5)
    claims = [claim["metadata"]["name"] for claim in lab.listed("pvc", gone)]
    until = time.monotonic() + 30
    while claims != ["brief-output"]:
        assert time.monotonic() < until, claims
        time.sleep(0.5)
        claims = [claim["metadata"]["name"] for claim in lab.listed("pvc", gone)]
    assert lab.get("ftj", "brief")["status"]["phase"] == "Succeeded", "the job itself stays"
    assert result(lab.output("brief")) == result(lab.output("whole"))
    lab.kubectl("delete", "ftj", "whole", "--timeout=60s")
    assert result(lab.output("whole")).losses


@pytest.mark.alone
def test_outputs_outlive_the_crds(lab: Lab, operator: OperatorProcess) -> None:
    """Whoever removes the kinds loses every object of them; results stay, and are taken up again."""
    lab.apply(lab.dataset(), lab.job("orphan", training={"maxSteps": 40}))
    lab.succeeded("orphan")
    before = result(lab.output("orphan"))
    try:
        for path in crd_paths():
            lab.cluster.kubectl("delete", f"--filename={path}", "--timeout=120s")
        assert lab.listed("pvc", "finetune.dev/name=orphan")
        assert result(lab.output("orphan")) == before
    finally:
        apply_crds(lab.cluster)
    lab.apply(lab.dataset(), lab.job("orphan", training={"maxSteps": 40}))
    assert lab.succeeded("orphan")["status"]["reason"] == "AlreadyTrained"
    assert result(lab.output("orphan")) == before


def test_a_restored_job_is_not_trained_again(lab: Lab, operator: OperatorProcess) -> None:
    lab.apply(lab.dataset(), lab.job("restored"))
    first = lab.succeeded("restored")
    before = result(lab.output("restored"))
    lab.kubectl("delete", "ftj", "restored", "--timeout=60s")
    lab.apply(lab.job("restored"))
    body = lab.succeeded("restored")
    assert body["metadata"]["uid"] != first["metadata"]["uid"]
    assert body["status"]["reason"] == "AlreadyTrained"
    pods = lab.listed("pods", f"finetune.dev/uid={body['metadata']['uid']}")
    assert {pod["metadata"]["labels"]["finetune.dev/step"] for pod in pods} == {"prepare"}
    assert result(lab.output("restored")) == before


def test_output_goes_with_its_object_if_asked(lab: Lab, operator: OperatorProcess) -> None:
    delete = {"retain": "Delete"}
    lab.apply(
        lab.dataset(),
        lab.job("own", output=delete),
        lab.job("theirs", output={**delete, "uri": "pvc://models/results"}),
    )
    for name in ("own", "theirs"):
        body = lab.succeeded(name)
        assert body["metadata"]["finalizers"] == ["finetune.dev/output"]
    folder = lab.folder("models") / "results" / lab.namespace / "theirs"
    assert (folder / "run-1").is_dir()
    for name in ("own", "theirs"):
        lab.kubectl("delete", "ftj", name, "--timeout=60s")
    until = time.monotonic() + 60
    while folder.exists() or lab.listed("pvc", "finetune.dev/name=own"):
        assert time.monotonic() < until, lab.story()
        time.sleep(0.5)
    assert (lab.folder("models") / "model").is_dir(), "nothing else on that claim was touched"
