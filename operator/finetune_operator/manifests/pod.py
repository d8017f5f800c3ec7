"""The pod of a step: restricted, without rights, told everything by one file."""

from typing import Any

from finetune_api.compute import Workers
from finetune_operator.manifests.volumes import CA_FOLDER, CONFIG_FOLDER, FOLDERS, Mount, mounts_of
from finetune_operator.plan import StepRun
from finetune_operator.settings import Settings, Sources

USER = 1000
CONTAINER = "step"
SPARE_SECONDS = 10
"""What a pod has beyond its step's grace period, to say what became of it."""
GPU_RESOURCE = "nvidia.com/gpu"
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def pod_spec(run: StepRun, settings: Settings) -> dict[str, Any]:
    """Return the spec of a step's pod, all but its arguments."""
    mounts = [*mounts_of(run), *_shared_memory(run), *_certificates(settings.sources)]
    file = run.job_file
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": file.grace_period_seconds + SPARE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **_pull_secrets(settings),
        "containers": [
            {
                "name": CONTAINER,
                "image": image_of(run, settings),
                "imagePullPolicy": settings.images.pull_policy,
                "env": environment(settings.sources),
                "securityContext": RESTRICTED,
                "terminationMessagePath": FOLDERS.termination_log,
                "resources": _resources(run),
                "volumeMounts": [mount.mount for mount in mounts],
            }
        ],
        "volumes": [mount.volume for mount in mounts],
    }


def image_of(run: StepRun, settings: Settings) -> str:
    """Return the image of a step."""
    images = settings.images
    return images.trainer if run.needs_torch or not images.prepare else images.prepare


def arguments(*, attempt: int, micro_batch_divisor: int) -> list[str]:
    """Return the arguments of the trainer in a pod; only these differ between attempts."""
    found = ["run", "--job-file", f"{CONFIG_FOLDER}/job.json", "--attempt", str(attempt)]
    if micro_batch_divisor != 1:
        found += ["--micro-batch-divisor", str(micro_batch_divisor)]
    return found


def environment(sources: Sources) -> list[dict[str, str]]:
    """Return the environment of every step: where it may write, and how it reaches its sources."""
    proxy = sources.proxy
    values = {
        "HOME": "/tmp",
        "MPLCONFIGDIR": "/tmp/matplotlib",
        "HF_HOME": "/tmp/huggingface",
        "HF_ENDPOINT": sources.hf_endpoint,
        "HF_HUB_OFFLINE": "1" if sources.offline else "",
        "FINETUNE_ALLOWED_HOSTS": ",".join(sources.allowed),
        "HTTP_PROXY": proxy.http,
        "HTTPS_PROXY": proxy.https,
        "NO_PROXY": proxy.no,
    }
    if sources.ca_bundle_config_map:
        bundle = f"{CA_FOLDER}/ca.crt"
        values |= dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"), bundle)
    return [{"name": name, "value": value} for name, value in values.items() if value]


def _pull_secrets(settings: Settings) -> dict[str, Any]:
    names = settings.images.pull_secrets
    return {"imagePullSecrets": [{"name": name} for name in names]} if names else {}


def _workers(run: StepRun) -> Workers:
    job = run.job_file.job
    return (job.workers if job else None) or Workers()


def _resources(run: StepRun) -> dict[str, Any]:
    gpus = run.job_file.devices
    return {"limits": {GPU_RESOURCE: str(gpus)}} if gpus else {}


def _shared_memory(run: StepRun) -> tuple[Mount, ...]:
    """Return memory that processes of one pod share: NCCL and data loaders need more than 64 MiB."""
    if run.job_file.processes == 1:
        return ()
    return (Mount("shm", "/dev/shm", {"emptyDir": {"medium": "Memory"}}),)


def _certificates(sources: Sources) -> tuple[Mount, ...]:
    name = sources.ca_bundle_config_map
    if not name:
        return ()
    return (Mount("ca", CA_FOLDER, {"configMap": {"name": name}}, read_only=True),)
