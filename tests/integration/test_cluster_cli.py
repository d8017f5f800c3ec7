"""The command line on a cluster: what a user types and reads, against a real API server."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_api.finetunejob import FineTuneJob
from finetune_cli.cluster import objects
from finetune_cli.cluster.evidence import Evidence
from finetune_cli.cluster.standing import standing_of
from finetune_cli.cluster.why import explain
from tests import cluster_cli
from tests.builders import a_dataset, a_job, an_export
from tests.cluster import Cluster
from tests.cluster.commands import wait_until
from tests.cluster.images import BASE, base_image
from tests.cluster_cli import (
    AGO,
    DATASET,
    JOB,
    MODEL,
    OUT_OF_MEMORY,
    RESULT,
    RUNNING,
    SUCCEEDED,
    Finetune,
    Ran,
    a_pod,
    attempt,
    condition,
    failed,
)

run, finetune, namespace = cluster_cli.run, cluster_cli.finetune, cluster_cli.namespace


def test_submit(finetune: Finetune) -> None:
    manifests = (an_export(), JOB, DATASET)
    dry = finetune.submit(*manifests, options=("--dry-run",))
    assert dry.out.splitlines()[0] == "datasetregistration/rows created (dry run)"
    assert "No objects" in finetune("get").out
    made = finetune.submit(*manifests)
    assert made.out.splitlines() == [
        "datasetregistration/rows created",
        "finetunejob/tiny created",
        "modelexport/merged created",
    ]
    assert "finetunejob/tiny unchanged" in finetune.submit(*manifests).out
    changed = finetune.submit(*manifests, options=("--set", "spec.ttlSecondsAfterFinished=60"))
    assert "finetunejob/tiny configured" in changed.out
    managers = finetune.stored("ftj", "tiny")["metadata"].get("managedFields", [])
    assert all(m["operation"] == "Apply" for m in managers if m["manager"] == "finetune")


def test_submit_sends_all_or_nothing(finetune: Finetune) -> None:
    here = a_dataset("here", source={"uri": "file://rows.jsonl"})
    refused = finetune.submit(DATASET, here, a_job(model=MODEL, dataset=[]))
    assert refused.code == 2
    assert "`spec.dataset`: unknown field; did you mean `datasets`?" in refused.err
    assert "`spec.source.uri`: file://rows.jsonl is on this computer" in refused.err
    assert "`finetune local run` reads files" in refused.err
    broken = finetune.submit(DATASET, a_job(model=MODEL, method="full"))
    assert broken.code == 2
    assert "FineTuneJob/tiny: `spec`: Invalid value: `lora` needs `method: lora`" in broken.err
    assert "No objects" in finetune("get").out
    finetune.submit(DATASET)
    finetune.kubectl("apply", "--server-side", "--field-manager=gitops", "-f", "-",
                     given=a_job(model=MODEL, activeDeadlineSeconds=100))  # fmt: skip
    conflict = finetune.submit(a_job(model=MODEL, activeDeadlineSeconds=200))
    assert conflict.code == 2
    assert '`spec.activeDeadlineSeconds`: conflict with "gitops"' in conflict.err


def test_get_and_describe(finetune: Finetune) -> None:
    finetune.submit(DATASET, JOB)
    finetune.set_status("ftj", "tiny", OUT_OF_MEMORY)
    uid = finetune.stored("ftj", "tiny")["metadata"]["uid"]
    about = {"kind": "FineTuneJob", "name": "tiny", "namespace": finetune.namespace, "uid": uid}
    finetune.kubectl("apply", "-f", "-", given={
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": about,
        "type": "Warning", "reason": "Odd", "message": "a line\nand one more",
        "lastTimestamp": AGO, "source": {"component": "test"},
    })  # fmt: skip
    lines = finetune("get", "ftj").out.splitlines()
    assert lines[0].split()[:2] == ["NAME", "PHASE"]
    assert lines[1].split()[:2] == ["tiny", "Failed"]
    everywhere = [line.split()[:2] for line in finetune("get", "ftj", "-A").out.splitlines()]
    assert [finetune.namespace, "tiny"] in everywhere
    assert "hf://org/model" in finetune("get", "ftj", "-o", "wide").out
    body = json.loads(finetune("get", "ftj", "tiny", "-o", "json").out)
    assert (body["kind"], body["spec"]["lora"]["rank"]) == ("FineTuneJob", 4)
    assert "managedFields" not in body["metadata"]
    text = finetune("describe", "tiny").out
    for part in ("Phase:      Failed (OutOfMemory)", "Attempts:", "a line and one more", "step 11"):
        assert part in text
    assert "Kind:       DatasetRegistration" in finetune("describe", "dreg", "rows").out
    missing = finetune("describe", "tinny")
    assert (missing.code, "did you mean `tiny`?" in missing.err) == (2, True)


def test_why_and_logs_of_what_ended(finetune: Finetune) -> None:
    finetune.submit(DATASET, JOB, a_job("wrong", model=MODEL), a_job("good", model=MODEL))
    finetune.set_status("ftj", "tiny", OUT_OF_MEMORY)
    finetune.set_status("ftj", "wrong", failed("UserError", "no such optimizer", "resolve"))
    finetune.set_status("ftj", "good", SUCCEEDED)
    lines = finetune("why", "tiny").out.splitlines()
    assert len(lines) <= 10
    assert "in step train (OutOfMemory, exit code 69, rank 0)" in lines[0]
    assert lines[1].split()[:4] == ["why", "CUDA", "out", "of"]
    assert "train 2: OutOfMemory, exit code 69, from step 10, 5m long" in lines[3]
    assert "FineTuneJob/tiny:spec.rerun=1" in lines[-1]
    wrong = finetune("why", "wrong").out
    assert "correct the manifest" in wrong
    assert "rerun" not in wrong, "a job without an attempt starts again by itself"
    good = finetune("why", "good").out
    assert f"result  adapter {RESULT} 35 MB" in good
    assert "mount claim tiny-output" in good
    kept = finetune("logs", "tiny")
    assert (kept.code, kept.out) == (0, "step 11\nCUDA out of memory\n")
    assert "attempt 2, is gone" in kept.err
    assert finetune("logs", "tiny", "--attempt", "1").code == 1
    never = finetune("logs", "tiny", "--step", "export-x")
    assert (never.code, "there: prepare 1, train 1, train 2" in never.err) == (2, True)


def test_logs_of_pods(finetune: Finetune, own_cluster: Cluster) -> None:
    own_cluster.load_image(base_image())
    finetune.submit(DATASET, JOB)
    finetune.set_status("ftj", "tiny", OUT_OF_MEMORY)
    uid = finetune.stored("ftj", "tiny")["metadata"]["uid"]
    says = ("sh", "-c", "echo begins; sleep 1; echo ends without a line break | tr -d '\\n'")
    first = a_pod(1, uid, image=BASE, command=["echo", "the first attempt"])
    finetune.kubectl("create", "-f", "-", given=first)
    finetune.kubectl("create", "-f", "-", given=a_pod(2, uid, image=BASE, command=list(says)))
    followed = finetune("logs", "tiny", "-f")
    assert (followed.code, followed.out) == (0, "begins\nends without a line break")
    assert finetune("logs", "tiny", "--attempt", "1").out == "the first attempt\n"
    finetune.kubectl("delete", "pods", "--all", "--grace-period=0", "--force")


def test_logs_and_why_of_a_pod_that_cannot_start(finetune: Finetune) -> None:
    finetune.submit(DATASET, JOB)
    finetune.set_status("ftj", "tiny", OUT_OF_MEMORY)
    uid = finetune.stored("ftj", "tiny")["metadata"]["uid"]
    finetune.kubectl("create", "-f", "-", given=a_pod(2, uid, image="nowhere/nothing:1"))
    wait_until(
        lambda: "ErrImageNeverPull" in finetune("logs", "tiny").err, what="a try", seconds=20
    )
    assert "pod attempt-2 has not started" in finetune("logs", "tiny").err
    assert "train 2: OutOfMemory, exit code 69, on " in finetune("why", "tiny").out
    finetune.kubectl("delete", "pods", "--all", "--grace-period=0", "--force")


def a_parsed_job(**status: object) -> FineTuneJob:
    metadata = {"name": "tiny", "namespace": "lab", "creationTimestamp": AGO}
    body = {**JOB, "metadata": metadata, **({"status": status} if status else {})}
    job = objects.typed(body)
    assert isinstance(job, FineTuneJob)
    return job


def test_why_of_what_goes_on() -> None:
    def why(job: FineTuneJob) -> list[str]:
        found = Evidence(job, lambda *words: " ".join(("finetune", *words)))
        return explain(found, standing_of(job))

    unseen = why(a_parsed_job())
    assert "no operator has taken it up yet" in unseen[0]
    assert "kubectl get pods" in unseen[-1]
    running = why(a_parsed_job(**RUNNING))
    assert running[0].startswith("tiny is running since ")
    assert any("step 2/6 (33 %), epoch 0.33, loss 1.5" in line for line in running)
    assert running[-1].endswith("finetune watch tiny, or finetune logs tiny -f")
    many = [attempt("train", n, "Stalled", exitCode=76) for n in range(1, 11)]
    assert len(why(a_parsed_job(**failed("Stalled", "no step", "train", attempts=many)))) <= 10


def test_why_of_a_job_without_data(finetune: Finetune) -> None:
    finetune.submit(JOB)
    message = (
        f"DatasetRegistration 'rows' does not exist in namespace '{finetune.namespace}'; create it,"
        " or correct `spec.datasets`"
    )
    gate = condition("DatasetReady", "False", "DatasetNotFound", message)
    words = {"phase": "Pending", "reason": "DatasetNotFound", "message": message}
    finetune.set_status("ftj", "tiny", {**words, "run": 1, "conditions": [gate]})
    lines = finetune("why", "tiny").out.splitlines()
    assert lines[0].startswith("tiny waits since ")
    assert lines[0].endswith("(DatasetNotFound)")
    assert lines[1].endswith(message)
    assert "submit that registration" in lines[-1]


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (SUCCEEDED, 0, f"adapter     {RESULT}"),
        (OUT_OF_MEMORY, 1, "finetune why tiny"),
        (None, 1, "was deleted"),
    ],
)
def test_watch(finetune: Finetune, status: dict[str, object] | None, code: int, says: str) -> None:
    finetune.submit(DATASET, JOB)
    finetune.set_status("ftj", "tiny", RUNNING)

    def end() -> None:
        if status is None:
            finetune.kubectl("delete", "ftj", "tiny", "--wait=false")
        else:
            finetune.set_status("ftj", "tiny", status)

    ending = threading.Timer(0.5, end)
    ending.start()
    watched = finetune("watch", "tiny")
    ending.join()
    assert (watched.code, says in watched.out) == (code, True), watched


def test_ctrl_c_leaves_a_watched_job_alone(finetune: Finetune) -> None:
    finetune.submit(DATASET, JOB)
    command = [sys.executable, "-m", "finetune_cli", "watch", "tiny", "-n", finetune.namespace]
    environment = {**finetune.access.environment(), "PYTHONUNBUFFERED": "1"}

    def hear() -> None:  # tests that run in the background have SIGINT ignored, and hand that down
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, preexec_fn=hear
    ) as process:
        assert process.stdout is not None
        assert "tiny" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert (
        f"goes on in the cluster. Watch it again: finetune watch tiny -n {finetune.namespace}"
        in rest
    )
    assert "deletionTimestamp" not in finetune.stored("ftj", "tiny")["metadata"]


def test_suspend_resume_delete(finetune: Finetune) -> None:
    finetune.submit(DATASET, JOB, a_job("good", model=MODEL))
    assert "finetunejob/tiny suspends" in finetune("suspend", "tiny").out
    assert finetune.stored("ftj", "tiny")["spec"]["suspend"] is True
    assert "suspended already" in finetune("suspend", "tiny").out
    assert "finetunejob/tiny goes on" in finetune("resume", "tiny").out
    assert finetune.stored("ftj", "tiny")["spec"]["suspend"] is False
    finetune.set_status("ftj", "good", SUCCEEDED)
    assert finetune("suspend", "good").code == 2
    gone = finetune("delete", "good").out
    assert f"its output stays on claim tiny-output: {RESULT}" in gone
    assert "datasetregistration/rows" in finetune("delete", "dreg", "rows").out


def test_problems_are_one_line(
    finetune: Finetune, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def problem(kubeconfig: Path) -> str:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        ran = finetune("get", "ftj")
        assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
        return ran.err

    changed = finetune.kubeconfig
    (tmp_path / "broken").write_text("a: [")
    dead = changed("dead", server="https://127.0.0.1:1", user={})
    assert "finetune local run FILE" in problem(tmp_path / "none")
    assert "cannot be used" in problem(tmp_path / "broken")
    assert "cannot reach the cluster at https://127.0.0.1:1: Connection refused" in problem(dead)
    assert "does not know you (401)" in problem(changed("wrong", user={"token": "no"}))
    token = finetune.kubectl("create", "token", "default").strip()
    forbidden = problem(changed("token", user={"token": token}))
    assert "you may not list finetunejobs.finetune.dev in namespace 'test-" in forbidden
    # What an API server answers that does not have our definitions.
    monkeypatch.setattr(objects, "OURS", "/apis/finetune.dev/v0")
    assert "the operator is not installed" in problem(finetune.access.kubeconfig)
    context = finetune("get", "--context", "nowhere")
    assert (context.code, "no context 'nowhere'; there: " in context.err) == (1, True)


def test_version_and_plugin(run: Callable[..., Ran], finetune: Finetune) -> None:
    shown = run("version").out.splitlines()
    assert shown[0].startswith("finetune ")
    assert shown[1].startswith("Kubernetes v")
    assert "FineTuneJob" in shown[2]
    called = run("get", "-n", finetune.namespace, program="/usr/local/bin/kubectl-finetune")
    assert f"kubectl finetune submit FILE -n {finetune.namespace}" in called.out
    assert "Usage: kubectl finetune get" in run("get", "--help", program="kubectl-finetune").out
