"""The command line on a cluster, for tests: in this process, with statuses as the operator writes them."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_cli import __main__ as cli
from tests.builders import a_dataset, a_job
from tests.cluster import Access
from tests.cluster.fixtures import fresh_namespace

CRDS = Path(__file__).parents[1] / "crds"
MODEL = {"uri": "hf://org/model"}
ROWS = {"uri": None, "inline": '{"instruction": "a", "output": "b"}'}
DATASET = a_dataset(source=ROWS)
JOB = a_job(model=MODEL)
AGO = "2026-01-01T00:00:00Z"


@dataclass
class Ran:
    """What a command printed."""

    code: int
    out: str
    err: str


@dataclass
class Finetune:
    """The command line in this process, in one namespace."""

    access: Access
    namespace: str
    folder: Path
    run: Callable[..., Ran]

    def __call__(self, *arguments: str) -> Ran:
        return self.run(*arguments, "-n", self.namespace)

    def submit(self, *manifests: dict[str, Any], options: tuple[str, ...] = ()) -> Ran:
        path = self.folder / "job.yaml"
        path.write_text(yaml.safe_dump_all(manifests))
        return self("submit", str(path), *options)

    def kubectl(self, *arguments: str, given: object = None) -> str:
        text = None if given is None else json.dumps(given)
        return self.access.kubectl(*arguments, "-n", self.namespace, input=text)

    def set_status(self, kind: str, name: str, status: dict[str, Any]) -> None:
        """Write a status as the operator would; a finished one it leaves alone, if there is any."""
        patch = json.dumps({"status": status})
        self.kubectl("patch", kind, name, "--subresource=status", "--type=merge", "-p", patch)

    def kubeconfig(self, name: str, *, user: dict[str, str], server: str = "") -> Path:
        """Write a kubeconfig with another user, and another server if one is named."""
        body = json.loads(self.kubectl("config", "view", "--raw", "--flatten", "-o", "json"))
        body["users"][0]["user"] = user
        body["clusters"][0]["cluster"]["server"] = (
            server or body["clusters"][0]["cluster"]["server"]
        )
        (self.folder / name).write_text(json.dumps(body))
        return self.folder / name

    def stored(self, kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return found


@pytest.fixture(scope="module")
def namespace(cluster: Access) -> Iterator[str]:
    """Return a namespace for all tests of a file: making one takes longer than most of them."""
    if "finetunejobs" not in cluster.kubectl("get", "crd", "--output=name"):
        files = [f"--filename={path}" for path in sorted(CRDS.glob("*.yaml"))]
        cluster.kubectl("apply", "--server-side", *files)
        cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", *files)
    with fresh_namespace(cluster) as name:
        yield name


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cluster: Access
) -> Callable[..., Ran]:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str, program: str = "finetune") -> Ran:
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        return Ran(int(ended.value.code or 0), shown.out, shown.err)

    return call


@pytest.fixture
def finetune(cluster: Access, namespace: str, tmp_path: Path, run: Callable[..., Ran]) -> Finetune:
    cluster.kubectl("delete", "ftj,dreg,mex", "--all", "-n", namespace)
    return Finetune(cluster, namespace, tmp_path, run)


def condition(type_: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
    return {
        "type": type_, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": AGO, "observedGeneration": 1,
    }  # fmt: skip


def attempt(step: str, number: int, reason: str | None, **more: Any) -> dict[str, Any]:
    ended = {"endTime": "2026-01-01T00:05:00Z", "reason": reason} if reason else {}
    return {"step": step, "number": number, "startTime": AGO, **ended, **more}


def ended(phase: str, reason: str, message: str, **more: Any) -> dict[str, Any]:
    good = phase == "Succeeded"
    holds = {"Succeeded": good, "Failed": not good, "Finished": True}
    return {
        "run": 1, "observedGeneration": 1, "phase": phase, "reason": reason, "message": message,
        "startTime": AGO, "completionTime": "2026-01-01T01:00:00Z",
        "conditions": [condition(t, str(h), reason, message) for t, h in holds.items()], **more,
    }  # fmt: skip


def failed(reason: str, message: str, step: str, **more: Any) -> dict[str, Any]:
    known = {key: more.pop(key) for key in ("exitCode", "rank", "logTail") if key in more}
    failure = {"class": reason, "message": message, "step": step, **known}
    return ended("Failed", reason, message, failure=failure, **more)


OUT_OF_MEMORY = failed(
    "OutOfMemory", "CUDA out of memory; lower `spec.data.maxLength`", "train",
    exitCode=69, rank=0, logTail="step 11\nCUDA out of memory\n",
    attempts=[
        attempt("prepare", 1, "Completed", exitCode=0),
        attempt("train", 1, "OutOfMemory", exitCode=69, stepsDone=12),
        attempt("train", 2, "OutOfMemory", exitCode=69, resumedFromStep=10),
    ],
)  # fmt: skip
RESULT = "pvc://tiny-output/x/tiny/run-1"
SUCCEEDED = ended(
    "Succeeded", "Completed", "6/6 steps, loss 0.5",
    artifacts=[{"kind": "adapter", "uri": RESULT, "sizeBytes": 35_000_000}],
)  # fmt: skip
RUNNING = {
    "run": 1, "observedGeneration": 1, "phase": "Running", "reason": "Training",
    "message": "step 2 of 6", "startTime": AGO,
    "progress": {"summary": "2/6", "step": 2, "totalSteps": 6, "percent": 33, "epoch": "0.33"},
    "metrics": {"loss": "1.5"}, "attempts": [attempt("train", 1, None)],
    "conditions": [condition("Finished", "False", "Training")],
}  # fmt: skip


def a_pod(attempt: int, uid: str, **container: Any) -> dict[str, Any]:
    """Return a pod of an attempt at training of the job `tiny`, as a restricted namespace takes it."""
    labels = {"kind": "FineTuneJob", "name": "tiny", "uid": uid, "step": "train", "run": "1"}
    labels["attempt"] = str(attempt)
    secure = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    step = {"name": "step", "imagePullPolicy": "Never", "securityContext": secure, **container}
    user = {"runAsNonRoot": True, "runAsUser": 1, "seccompProfile": {"type": "RuntimeDefault"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"attempt-{attempt}",
            "labels": {f"finetune.dev/{key}": value for key, value in labels.items()},
        },
        "spec": {"restartPolicy": "Never", "securityContext": user, "containers": [step]},
    }
