"""The pod of a step: restricted, without rights, told everything by one file."""

from collections.abc import Sequence
from typing import Any

from finetune_api.base import Model
from finetune_api.compute import Scheduling
from finetune_api.contract import Receiver
from finetune_api.objects import dump
from finetune_api.pods import Gpu, PodSettings, Resources
from finetune_api.workerprofile import WorkerProfileSpec
from finetune_operator.manifests.reporting import environment_of, token_mounts, without_proxy
from finetune_operator.manifests.volumes import CA_FOLDER, CONFIG_FOLDER, FOLDERS, Mount, mounts_of
from finetune_operator.plan import StepRun
from finetune_operator.settings import Settings, Sources

USER = 1000
CONTAINER = "step"
SPARE_SECONDS = 10
"""What a pod has beyond its step's grace period, to say what became of it."""
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def pod_spec(run: StepRun, settings: Settings, receiver: Receiver | None = None) -> dict[str, Any]:
    """Return the spec of a step's pod, all but its arguments."""
    mounts = [
        *mounts_of(run), *_shared_memory(run), *_certificates(settings.sources),
        *token_mounts(receiver),
    ]  # fmt: skip
    profile = run.placement.profile or WorkerProfileSpec()
    given = {
        "serviceAccountName": profile.service_account_name,
        "runtimeClassName": profile.runtime_class_name,
        "priorityClassName": _scheduling(run).priority_class_name,
        "imagePullSecrets": _pull_secrets(run, settings),
        **placed(run),
    }
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": run.job_file.grace_period_seconds + SPARE_SECONDS,
        "securityContext": POD_SECURITY,
        **{name: value for name, value in given.items() if value},
        "containers": [
            {
                "name": CONTAINER,
                "image": image_of(run, settings),
                "imagePullPolicy": settings.images.pull_policy,
                "env": [*environment(settings.sources, receiver), *_plain(profile.env)],
                "securityContext": _container_security(run, profile),
                "terminationMessagePath": FOLDERS.termination_log,
                "resources": resources(run),
                "volumeMounts": [mount.mount for mount in mounts],
            }
        ],
        "volumes": [mount.volume for mount in mounts],
    }


def placed(run: StepRun) -> dict[str, Any]:
    """Return which nodes a pod may run on: profile, GPU and job together, the job's word last.

    Preparing takes the places of training too: a claim that is bound where training cannot go would
    keep it waiting for ever.
    """
    profile = run.placement.profile or WorkerProfileSpec()
    pod = run.placement.workers.pod or PodSettings()
    gpu = _gpu(run)
    wants_gpus = run.job_file.devices or run.step == "prepare" and run.asks_for_gpus
    product = {f"{gpu.resource.split('/')[0]}/gpu.product": gpu.product} if gpu.product else {}
    return {
        "nodeSelector": {
            **(profile.node_selector or {}),
            **(product if wants_gpus else {}),
            **(pod.node_selector or {}),
        },
        "tolerations": [*_plain(profile.tolerations), *_plain(pod.tolerations)],
        "affinity": dump(pod.affinity) if pod.affinity else {},
    }


def pod_marks(run: StepRun) -> tuple[dict[str, str], dict[str, str]]:
    """Return the labels and annotations that profile and job want on Jobs and pods."""
    profile = run.placement.profile or WorkerProfileSpec()
    pod = run.placement.workers.pod or PodSettings()
    return (
        {**(profile.pod_labels or {}), **(pod.labels or {})},
        {**(profile.pod_annotations or {}), **(pod.annotations or {})},
    )


def image_of(run: StepRun, settings: Settings) -> str:
    """Return the image of a step."""
    images, profile = settings.images, run.placement.profile
    if not run.needs_torch and images.prepare:
        return images.prepare
    return (profile.image if profile else None) or images.trainer


def arguments(*, attempt: int, micro_batch_divisor: int) -> list[str]:
    """Return the arguments of the trainer in a pod; only these differ between attempts."""
    found = ["run", "--job-file", f"{CONFIG_FOLDER}/job.json", "--attempt", str(attempt)]
    if micro_batch_divisor != 1:
        found += ["--micro-batch-divisor", str(micro_batch_divisor)]
    return found


def environment(sources: Sources, receiver: Receiver | None = None) -> list[dict[str, str]]:
    """Return the environment of every step: where it may write, and how it reaches its sources."""
    proxy = sources.proxy
    values = {
        "HOME": "/tmp",
        "MPLCONFIGDIR": "/tmp/matplotlib",
        "HF_HOME": "/tmp/huggingface",
        "HF_ENDPOINT": sources.hf_endpoint,
        "HF_HUB_OFFLINE": "1" if sources.offline else "",
        "HTTP_PROXY": proxy.http,
        "HTTPS_PROXY": proxy.https,
        "NO_PROXY": without_proxy(receiver, proxy.no) if proxy.http or proxy.https else proxy.no,
        **environment_of(receiver),
    }
    if sources.ca_bundle_config_map:
        bundle = f"{CA_FOLDER}/ca.crt"
        values |= dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"), bundle)
    given = [{"name": name, "value": value} for name, value in values.items() if value]
    # Set, though empty: this pod is in a cluster, where what is private is not for every tenant.
    return [*given, {"name": "FINETUNE_ALLOWED_HOSTS", "value": ",".join(sources.allowed)}]


def resources(run: StepRun) -> dict[str, Any]:
    """Return what a pod asks for: training alone asks for GPUs and for what the job says."""
    if run.job_file.step != "train":
        return {}
    given = run.placement.workers.resources or Resources()
    gpus, profile = run.job_file.devices, run.placement.profile
    limits = {
        **((profile.resources if profile else None) or {}),
        **({_gpu(run).resource: str(gpus)} if gpus else {}),
        **(given.limits or {}),
    }
    asked = {"requests": given.requests, "limits": limits}
    return {name: value for name, value in asked.items() if value}


def _gpu(run: StepRun) -> Gpu:
    profile = run.placement.profile
    return run.placement.workers.gpu or (profile.gpu if profile else None) or Gpu()


def _scheduling(run: StepRun) -> Scheduling:
    return run.placement.scheduling or Scheduling()


def _plain(items: Sequence[Model] | None) -> list[dict[str, Any]]:
    return [dump(item) for item in items or ()]


def _pull_secrets(run: StepRun, settings: Settings) -> list[dict[str, str]]:
    profile, pod = run.placement.profile, run.placement.workers.pod
    of_profile = (profile.image_pull_secrets if profile else None) or []
    of_job = (pod.image_pull_secrets if pod else None) or []
    names = [*settings.images.pull_secrets, *(secret.name for secret in [*of_profile, *of_job])]
    return [{"name": name} for name in dict.fromkeys(names)]


def _container_security(run: StepRun, profile: WorkerProfileSpec) -> dict[str, Any]:
    if run.job_file.step != "train" or not profile.capabilities:
        return RESTRICTED
    return {**RESTRICTED, "capabilities": {"drop": ["ALL"], "add": list(profile.capabilities)}}


def _shared_memory(run: StepRun) -> tuple[Mount, ...]:
    """Return memory that processes of one pod share: NCCL and data loaders need more than 64 MiB."""
    size = run.placement.workers.shared_memory
    if run.job_file.step != "train" or run.job_file.processes == 1 and size is None:
        return ()
    memory = {"medium": "Memory", **({"sizeLimit": size} if size else {})}
    return (Mount("shm", "/dev/shm", {"emptyDir": memory}),)


def _certificates(sources: Sources) -> tuple[Mount, ...]:
    name = sources.ca_bundle_config_map
    if not name:
        return ()
    return (Mount("ca", CA_FOLDER, {"configMap": {"name": name}}, read_only=True),)
