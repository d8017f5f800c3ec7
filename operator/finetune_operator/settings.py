"""What an administrator sets for the whole operator; the chart writes it into one file."""

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Model
from finetune_api.storage import AccessMode


class Images(Model):
    """Images of the steps."""

    trainer: str
    """Image of `train` and `export`, and of `prepare` where a model must be converted."""
    prepare: str = ""
    """Image of `validate` and `prepare`, without torch. Unset: the trainer's."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When nodes pull them."""
    pull_secrets: list[str] = []
    """Secrets of the jobs' namespaces with the registry's credentials."""


class ClaimDefaults(Model):
    """Claims that the operator makes."""

    class_name: str | None = None
    """StorageClass. Unset: the cluster's default."""
    size: str = "100Gi"
    """Size asked for."""
    access_mode: AccessMode = AccessMode.ONE_NODE
    """How nodes may mount it."""


class Proxy(Model):
    """Addresses of proxies, as the usual environment variables take them."""

    http: str = ""
    """`HTTP_PROXY`."""
    https: str = ""
    """`HTTPS_PROXY`."""
    no: str = ""
    """`NO_PROXY`."""


class Sources(Model):
    """Where steps may fetch from, and how they get there."""

    allowed: list[str] = []
    """Hosts with private addresses that may be read from all the same."""
    hf_endpoint: str = ""
    """Address of a mirror of the Hugging Face hub."""
    offline: bool = False
    """Refuse what is not in the cache or on a claim."""
    ca_bundle_config_map: str = ""
    """ConfigMap of the jobs' namespaces whose key `ca.crt` holds the certificates to trust."""
    proxy: Proxy = Proxy()
    """Proxies."""


class Progress(Model):
    """Where running steps report to."""

    url: str = ""
    """Address of the receivers as pods reach them, such as `https://name.namespace.svc:8443`. Empty:
    none; then progress is told when a step ends."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8443
    """Port that this operator's receiver listens on. 0: none."""
    jobs_in_metrics: Annotated[int, Field(ge=0, le=100_000)] = 1000
    """Most jobs that have series of their own in `/metrics`."""


class Lease(Model):
    """Which of several operators acts."""

    namespace: str = "default"
    """Namespace of the Lease."""
    name: str = "finetune-operator"
    """Its name."""


class Settings(Model):
    """Settings of an operator."""

    images: Images
    """Images of the steps."""
    namespaces: list[str] = []
    """Namespaces that it looks after. Empty: all."""
    work: ClaimDefaults = ClaimDefaults()
    """A job's working claim: base model, tokenised data, checkpoints."""
    output: ClaimDefaults = ClaimDefaults(size="50Gi")
    """A job's own output claim."""
    sources: Sources = Sources()
    """Where steps may fetch from."""
    network_policies: bool = True
    """Make a NetworkPolicy for the pods of each step: nobody reaches them, and they reach all addresses
    but those where clouds hand out a node's credentials."""
    log_tail: bool = True
    """Show the last lines of a failed step's log in `status.failure`."""
    progress: Progress = Progress()
    """Where running steps report to."""
    log_format: Literal["json", "text"] = "json"
    """Of the operator's own log: one JSON object a line, or plain text."""
    lease: Lease = Lease()
    """Which of several operators acts."""
    health_port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Port of `/healthz` and `/readyz`."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9090
    """Port of `/metrics`. 0: none."""
