"""What is in a Secret, and in another namespace, stays there."""

import base64
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster import Cluster
from tests.cluster.fixtures import fresh_namespace
from tests.e2e.lab import ROWS, Lab
from tests.e2e.operators import OperatorProcess
from tests.fakes.served_hub import Hub, serving
from tests.fakes.tiny import tiny_model

ALL_KINDS = "ftj,dreg,mex,jobs,pods,configmaps,networkpolicies,pvc,events"


def a_secret(name: str, token: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
            "stringData": {"HF_TOKEN": token}}  # fmt: skip


def of_hub(name: str, secret: str) -> dict[str, Any]:
    return {"uri": name, "inline": None, "credentialsSecretRef": {"name": secret}}


def test_a_token_shows_nowhere(
    operator_process: OperatorProcess, own_cluster: Cluster, lab: Lab, tmp_path: Path
) -> None:
    right, wrong = f"hf_{secrets.token_hex(16)}", f"hf_{secrets.token_hex(16)}"
    model = {path.name: path.read_bytes() for path in tiny_model(tmp_path / "model").iterdir()}
    repositories = {"models/org/tiny": model, "datasets/org/rows": {"train.jsonl": ROWS.encode()}}
    host = own_cluster.api_server.split("://")[1].split(":")[0]
    with serving(Hub(repositories, token=right), host=host) as hub:
        allowed = {"hfEndpoint": hub.endpoint, "allowed": [host]}
        operator_process.settings["sources"] = allowed
        operator_process.start()
        operator_process.wait_until_leading()
        lab.apply(
            a_secret("right", right),
            a_secret("wrong", wrong),
            lab.dataset("rows", source=of_hub("hf://datasets/org/rows", "right")),
            lab.dataset("refused", source=of_hub("hf://datasets/org/rows", "wrong")),
            lab.job("told", model={"uri": "hf://org/tiny", "credentialsSecretRef": {"name": "right"}},
                    training={"maxSteps": 4}, exports=[{"name": "merged", "format": "huggingface"}]),
        )  # fmt: skip
        lab.succeeded("told")
        refused = lab.finished("refused", kind="datasetregistration")
    assert {"tiny/model.safetensors", "rows/train.jsonl"} <= {
        name.removeprefix("org/") for name in hub.downloads
    }
    assert "credentialsSecretRef" in refused["status"]["message"]
    training_has_it_not(lab)
    shown = everything_shown(lab, operator_process)
    for token in (right, wrong):
        for form in (token.encode(), base64.b64encode(token.encode())):
            assert not [where for where, content in shown.items() if form in content]


def training_has_it_not(lab: Lab) -> None:
    """Where a user's data and a model's code are computed with, there is no token."""
    steps = {
        pod["metadata"]["labels"]["finetune.dev/step"]
        for pod in lab.listed("pods")
        if any("secret" in json.dumps(volume) for volume in pod["spec"]["volumes"])
    }
    assert steps == {"validate", "prepare", "export-merged"}


def everything_shown(lab: Lab, operator: OperatorProcess) -> dict[str, bytes]:
    """Return all that people and other programs can read: objects, logs, files of claims."""
    found = {"objects": lab.kubectl("get", ALL_KINDS, "--output=json").encode()}
    for pod in lab.listed("pods"):
        name = pod["metadata"]["name"]
        found[f"log of {name}"] = lab.kubectl("logs", name).encode()
    assert len(found) > 4
    found["log of the operator"] = operator.log_text().encode()
    folders = [lab.folder("told-output"), lab.work("told")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    return found | {str(path): path.read_bytes() for path in files}


def test_nothing_of_another_namespace_is_reached(
    operator_process: OperatorProcess, own_cluster: Cluster, lab: Lab
) -> None:
    with fresh_namespace(own_cluster) as name:
        other = Lab(own_cluster, name)
        operator_process.settings["namespaces"] += [name]
        operator_process.start()
        operator_process.wait_until_leading()
        lab.apply(lab.dataset(), a_secret("hub", "hf_x"))
        lab.wait(
            "dreg", "rows", lambda b: b.get("status", {}).get("phase") == "Ready", what="ready"
        )
        other.apply(
            other.job("wants-data"),
            other.export("wants-job", source={"jobRef": {"name": "tiny"}}),
            other.dataset("wants-claim", source={"uri": "pvc://models/rows.jsonl", "inline": None}),
            other.dataset("wants-secret", source=of_hub("hf://datasets/org/rows", "hub")),
        )
        for kind, each, reason in (
            ("ftj", "wants-data", "DatasetNotFound"),
            ("mex", "wants-job", "JobNotFound"),
            ("dreg", "wants-claim", "ClaimNotFound"),
            ("dreg", "wants-secret", "SecretNotFound"),
        ):
            other.wait(kind, each, waits_for(reason), what=reason, seconds=60)


def waits_for(reason: str) -> Callable[[dict[str, Any]], bool]:
    """Tell of an object whether that is what it waits for."""
    return lambda body: body.get("status", {}).get("reason") == reason
