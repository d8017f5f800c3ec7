"""Where the cluster is and who asks, from the user's kubeconfig."""

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yaml import YAMLError

from finetune_cli.words import Problem, one_line, program

DEFAULT_NAMESPACE = "default"
DEFAULT_FILE = "~/.kube/config"
WRONG_SHAPE = (ValueError, TypeError, AttributeError)
"""What the library raises for a kubeconfig that holds something else than it should."""


@dataclass(frozen=True)
class Login:
    """A client with credentials, and the namespace that its context names."""

    client: Any
    server: str
    namespace: str
    complaints: list[str] = field(default_factory=list)
    """What went wrong when credentials were asked for; the library only logs it."""


class _Kept(logging.Handler):
    """Keeps what is logged, and prints nothing."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.said.append(one_line(record.getMessage(), limit=200))


def log_in(context: str | None) -> Login:
    """Return the login of a context; of the current one without a name.

    Raises:
        Problem: there is no kubeconfig, or it does not hold what is needed.
    """
    from kubernetes.config import ConfigException

    kept = _Kept()
    logging.getLogger().addHandler(kept)
    files = _files()
    if not any(path.exists() for path in files):
        raise Problem(_no_kubeconfig(files))
    try:
        client, namespace = _loaded(os.pathsep.join(map(str, files)), context)
    except (ConfigException, YAMLError, OSError, LookupError, *WRONG_SHAPE) as error:
        raise Problem(
            f"the kubeconfig {', '.join(map(str, files))} cannot be used: {one_line(str(error))};"
            f" correct it, or train on this computer: {program()} local run FILE"
        ) from error
    return Login(client, str(client.configuration.host), namespace, kept.said)


def _loaded(files: str, context: str | None) -> tuple[Any, str]:
    """Return a client for a context, and the namespace that the context names."""
    # Half a second of imports, which `finetune local` should not pay for.
    from kubernetes.client import ApiClient, Configuration
    from kubernetes.config import list_kube_config_contexts, load_kube_config

    found, active = list_kube_config_contexts(files)  # type: ignore[no-untyped-call]
    chosen = _chosen(found, active, context)
    configuration = Configuration()
    load_kube_config(  # type: ignore[no-untyped-call]
        files,
        context=chosen["name"],
        client_configuration=configuration,
        persist_config=False,
    )
    configuration.retries = False
    return ApiClient(configuration), str(chosen["context"].get("namespace") or DEFAULT_NAMESPACE)


def _files() -> list[Path]:
    """Return the kubeconfig files, as kubectl finds them."""
    given = os.environ.get("KUBECONFIG") or DEFAULT_FILE
    return [Path(part).expanduser() for part in given.split(os.pathsep) if part]


def _no_kubeconfig(files: list[Path]) -> str:
    where = ", ".join(map(str, files))
    how = (
        "KUBECONFIG names no file that exists" if os.environ.get("KUBECONFIG") else "no kubeconfig"
    )
    return (
        f"{how} ({where}); get one from whoever runs your cluster, or train on this computer:"
        f" {program()} local run FILE"
    )


def _chosen(found: list[Any], active: Any, context: str | None) -> Any:
    """Return the context that was asked for.

    Raises:
        Problem: there is none of that name.
    """
    if context is None:
        return active
    for one in found:
        if one["name"] == context:
            return one
    there = ", ".join(str(one["name"]) for one in found) or "none"
    raise Problem(f"the kubeconfig has no context '{context}'; there: {there}")
