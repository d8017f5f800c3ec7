"""Where the API server is and who we are, from the pod's service account or a kubeconfig."""

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kubernetes.client import Configuration
from kubernetes.config import load_incluster_config, load_kube_config

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True)
class Login:
    """How to reach the API server."""

    server: str
    tls: ssl.SSLContext | None
    token: Callable[[], str]
    """Return the authorization header's value, fresh; empty with a client certificate."""

    def headers(self) -> dict[str, str]:
        """Return the headers of a call."""
        token = self.token()
        return {"Authorization": token} if token else {}


def log_in(kubeconfig: str | None = None) -> Login:
    """Return the login of a kubeconfig; unset: of this pod, or the usual kubeconfig outside one."""
    # The library's loaders have no types.
    configuration = Configuration()
    if kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ and SERVICE_ACCOUNT.is_dir():
        load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    else:
        load_kube_config(kubeconfig, client_configuration=configuration)  # type: ignore[no-untyped-call]
    return Login(configuration.host, _tls(configuration), lambda: _token(configuration))


def _token(configuration: Configuration) -> str:
    # The loader's hook reads a rotated token again when it is asked for.
    return str(configuration.get_api_key_with_prefix("BearerToken", alias="authorization") or "")


def _tls(configuration: Configuration) -> ssl.SSLContext | None:
    if not configuration.host.startswith("https:"):
        return None
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
