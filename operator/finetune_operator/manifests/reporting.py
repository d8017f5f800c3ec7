"""What a pod needs to report progress: an address, whom to trust, and a token for that alone."""

from finetune_api.contract import Receiver
from finetune_operator.manifests.volumes import (
    AUTHORITIES_KEY,
    CONFIG_FOLDER,
    TOKEN_FILE,
    TOKEN_FOLDER,
    Mount,
)
from finetune_operator.plan import StepRun
from finetune_operator.settings import Settings

AUDIENCE = "finetune-progress"
PATH = "/v1/progress"
TOKEN_SECONDS = 3600
"""Life of a token; the kubelet renews it when a fifth is left."""


def receiver_of(run: StepRun, settings: Settings) -> Receiver | None:
    """Return where a step reports to; None: nowhere. Only training has anything to report."""
    if run.job_file.step != "train" or not (settings.progress.url and settings.progress.port):
        return None
    return Receiver(
        url=settings.progress.url.rstrip("/") + PATH,
        ca_file=f"{CONFIG_FOLDER}/{AUTHORITIES_KEY}",
        token_file=f"{TOKEN_FOLDER}/{TOKEN_FILE}",
    )


def token_mounts(receiver: Receiver | None) -> tuple[Mount, ...]:
    """Return the token: the API server itself takes it for nothing, its audience is the receiver."""
    if receiver is None:
        return ()
    token = {"audience": AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": TOKEN_FILE}
    sources = [{"serviceAccountToken": token}]
    projected = {"projected": {"sources": sources, "defaultMode": 0o440}}
    return (Mount("token", TOKEN_FOLDER, projected, read_only=True),)


def environment_of(receiver: Receiver | None) -> dict[str, str]:
    """Return what transformers' own reporting reads, for images that train in another way."""
    if receiver is None:
        return {}
    return {
        "KUBEFLOW_TRAINER_SERVER_URL": receiver.url,
        "KUBEFLOW_TRAINER_SERVER_CA_CERT": receiver.ca_file,
        "KUBEFLOW_TRAINER_SERVER_TOKEN": receiver.token_file,
    }


def without_proxy(receiver: Receiver | None, hosts: str) -> str:
    """Return `NO_PROXY` with the receiver in it: the way to it is short."""
    if receiver is None:
        return hosts
    host = receiver.url.split("://", 1)[1].split("/", 1)[0].rsplit(":", 1)[0]
    return f"{hosts},{host}" if hosts else host
