"""Manifests of steps: restricted, owned, frozen at the first attempt, without secrets in them."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_api.compute import Scheduling, Workers
from finetune_api.workerprofile import WorkerProfileSpec
from finetune_operator.manifests import labels
from finetune_operator.manifests.clean import cleaning_job
from finetune_operator.manifests.job import QUEUE_LABEL, config_map, job
from finetune_operator.manifests.storage import output_claim, work_claim
from finetune_operator.manifests.volumes import claim_of
from finetune_operator.plan import Key, Placement, StepRun
from finetune_operator.settings import ClaimDefaults, Images, Settings, Sources
from tests.builders import a_dataset, a_job, an_export, merged
from tests.fakes.world import World

SETTINGS = Settings(images=Images(trainer="trainer:1", prepare="prepare:1", pull_secrets=["p"]))
SECRET = {"credentialsSecretRef": {"name": "hub"}}
SPEC = {
    "model": {"uri": "hf://org/model", **SECRET},
    "output": {"uri": "pvc://results/here"},
    "exports": [{"name": "merged", "format": "huggingface"}],
    "workers": {"gpusPerNode": 2, "gpu": {"product": "H100"}, "sharedMemory": "8Gi",
                "resources": {"limits": {"memory": "64Gi"}},
                "pod": {"labels": {"team": "a"}}},
}  # fmt: skip
PROFILE = WorkerProfileSpec.model_validate(
    {"image": "own:1", "nodeSelector": {"pool": "gpu"}, "podLabels": {"cost": "x"},
     "imagePullSecrets": [{"name": "p"}, {"name": "q"}]}
)  # fmt: skip


def runs_of(**spec: Any) -> dict[str, StepRun]:
    """Return the run of each step of a job, as decided on a cluster."""
    body = merged(a_job(), {"spec": {**SPEC, **spec}})
    world = World(a_dataset(source={"uri": "pvc://data/rows.jsonl"}), body)
    world.machine = None
    world.finish_all()
    return {world.made[name].step: world.made[name] for name in world.order}


RUNS = runs_of()


def made(run: StepRun, settings: Settings = SETTINGS) -> dict[str, Any]:
    return job(run, "u1", config_map(run, "u1", settings))


def pod_of(run: StepRun, settings: Settings = SETTINGS) -> dict[str, Any]:
    pod: dict[str, Any] = made(run, settings)["spec"]["template"]["spec"]
    return pod


def is_restricted(pod: dict[str, Any]) -> bool:
    """Tell whether a pod passes Pod Security `restricted` (1.35), our rules besides."""
    kinds = {"configMap", "emptyDir", "persistentVolumeClaim", "secret", "projected"}
    given = pod["securityContext"]
    return (
        given["runAsNonRoot"]
        and given["runAsUser"] != 0
        and given["seccompProfile"]["type"] == "RuntimeDefault"
        and not pod["automountServiceAccountToken"]
        and not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
        and all(set(volume) - {"name"} <= kinds for volume in pod["volumes"])
        and all(
            c["securityContext"]["allowPrivilegeEscalation"] is False
            and c["securityContext"]["readOnlyRootFilesystem"]
            and c["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            and not any("hostPort" in port for port in c.get("ports", ()))
            for c in pod["containers"]
        )
    )


def test_there_is_a_run_of_every_step() -> None:
    assert list(RUNS) == ["validate", "prepare", "train", "export-merged"]


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_every_pod_is_restricted(run: StepRun) -> None:
    assert is_restricted(pod_of(run))
    profiled = replace(run, placement=replace(run.placement, profile=PROFILE))
    assert is_restricted(pod_of(profiled))


def test_the_pod_that_cleans_is_restricted() -> None:
    body = cleaning_job(Key("FineTuneJob", "a", "b"), "u1", "pvc://c/a/b", SETTINGS)
    assert is_restricted(body["spec"]["template"]["spec"])
    assert body["spec"]["activeDeadlineSeconds"]


def test_a_later_object_of_a_name_has_a_cleaning_of_its_own() -> None:
    """Else the finished Job of the first would be taken for that of the second."""
    names = {
        cleaning_job(Key("FineTuneJob", "a", "b"), uid, "pvc://c/a/b", SETTINGS)["metadata"]["name"]
        for uid in ("u1", "u2")
    }
    assert len(names) == 2


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_names_and_labels_are_admissible(run: StepRun) -> None:
    body = made(run)
    assert len(body["metadata"]["name"]) <= 61
    assert all(len(value) <= 63 for value in body["metadata"]["labels"].values())
    mounts = [
        m["mountPath"] for m in body["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    ]
    assert len(set(mounts)) == len(mounts)


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_children_go_with_their_object(run: StepRun) -> None:
    for body in (made(run), config_map(run, "u1", SETTINGS)):
        (owner,) = body["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == (run.owner.kind, "u1", True)
        assert body["metadata"]["labels"][labels.UID] == "u1"


def test_an_output_stays_when_its_object_goes() -> None:
    run = RUNS["train"]
    assert "ownerReferences" not in output_claim(run, "u1", "x-output", ClaimDefaults())["metadata"]
    assert "ownerReferences" in work_claim(run, "u1", ClaimDefaults())["metadata"]


def test_later_attempts_use_what_was_frozen() -> None:
    run = RUNS["train"]
    frozen = config_map(run, "u1", SETTINGS)
    later = replace(
        run,
        name="later",
        placement=Placement(profile=PROFILE, scheduling=Scheduling(queue_name="q")),
        job_file=run.job_file.model_copy(update={"attempt": 2, "micro_batch_divisor": 2}),
    )
    first, second = job(run, "u1", frozen), job(later, "u1", frozen)
    assert second["metadata"]["labels"] == {**first["metadata"]["labels"], labels.ATTEMPT: "2"}
    pods = [body["spec"]["template"]["spec"] for body in (first, second)]
    arguments = [pod["containers"][0].pop("args") for pod in pods]
    assert pods[0] == pods[1]
    assert arguments[1][-4:] == ["--attempt", "2", "--micro-batch-divisor", "2"]


def test_a_queued_job_waits_suspended() -> None:
    placement = replace(RUNS["train"].placement, scheduling=Scheduling(queue_name="gpus"))
    body = made(replace(RUNS["train"], placement=placement))
    assert body["spec"]["suspend"]
    assert body["metadata"]["labels"][QUEUE_LABEL] == "gpus"


def test_only_those_who_fetch_get_secrets() -> None:
    for step, wanted in (
        ("validate", []),
        ("prepare", ["hub"]),
        ("train", []),
        ("export-merged", ["hub"]),
    ):
        volumes = pod_of(RUNS[step])["volumes"]
        assert [v["secret"]["secretName"] for v in volumes if "secret" in v] == wanted


def test_only_training_gets_gpus() -> None:
    limits = {step: pod_of(run)["containers"][0]["resources"] for step, run in RUNS.items()}
    assert limits["train"] == {"limits": {"nvidia.com/gpu": "2", "memory": "64Gi"}}
    assert not any(asked for step, asked in limits.items() if step != "train")


def test_prepare_runs_where_training_can() -> None:
    selectors = [pod_of(RUNS[step])["nodeSelector"] for step in ("prepare", "train")]
    assert selectors == [{"nvidia.com/gpu.product": "H100"}] * 2


def test_claims_are_written_only_where_the_result_goes() -> None:
    mounts = {m["mountPath"]: m for m in pod_of(RUNS["validate"])["containers"][0]["volumeMounts"]}
    assert mounts["/claims/data"]["readOnly"]
    mounts = {m["mountPath"]: m for m in pod_of(RUNS["train"])["containers"][0]["volumeMounts"]}
    assert "readOnly" not in mounts["/claims/results"]
    assert claim_of("hf://results/x") == ""


def test_pull_secrets_are_named_once() -> None:
    placement = Placement(workers=Workers(), profile=PROFILE)
    found = pod_of(replace(RUNS["train"], placement=placement))["imagePullSecrets"]
    assert found == [{"name": "p"}, {"name": "q"}]


def test_an_air_gap_reaches_every_pod() -> None:
    settings = SETTINGS.model_copy(
        update={"sources": Sources(offline=True, ca_bundle_config_map="ca", allowed=["hub.local"])}
    )
    for run in RUNS.values():
        env = {e["name"]: e["value"] for e in pod_of(run, settings)["containers"][0]["env"]}
        assert (env["HF_HUB_OFFLINE"], env["FINETUNE_ALLOWED_HOSTS"]) == ("1", "hub.local")
        assert env["SSL_CERT_FILE"] == "/etc/finetune-ca/ca.crt"


def test_a_job_cannot_wear_the_labels_of_another() -> None:
    pod = RUNS["train"].placement.workers.model_copy(update={"pod": None})
    profile = WorkerProfileSpec(pod_labels={labels.UID: "u2", labels.NAME: "other"})
    body = made(replace(RUNS["train"], placement=Placement(workers=pod, profile=profile)))
    assert body["metadata"]["labels"][labels.UID] == "u1"


def test_an_export_has_no_work_claim_of_its_own() -> None:
    world = World(a_dataset(), a_job(), an_export(destination={"uri": "pvc://shared"}))
    world.machine = None
    world.finish_all()
    run = next(r for r in world.made.values() if r.owner.kind == "ModelExport")
    assert run.work_claim.startswith("tiny-")
