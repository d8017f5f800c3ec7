"""Addresses that a tenant's job may read: public ones, and those that the administrator allows.

In a cluster everybody's pods reach what is inside: metadata services, databases, the API server. So a
host is looked up before it is asked, after every redirect again, and the address that was reached is
looked at once more before anything is sent: a name may mean something else a moment later.
"""

import ipaddress
import os
import socket
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.utils import select_proxy
from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import HTTPSConnectionPool

from finetune_trainer.errors import UserError

ALLOWED = "FINETUNE_ALLOWED_HOSTS"
"""Hosts with private addresses that may be read, comma-separated. Not set: no cluster, all may be."""


def session() -> requests.Session:
    """Return a session that reads what may be read, by HTTPS alone."""
    made = requests.Session()
    if ALLOWED in os.environ:
        made.mount("https://", _PublicOnly())
        made.adapters.pop("http://")
    return made


def require_public(host: str, *, resolve: bool = True) -> None:
    """Refuse a host that has a private address, unless it is allowed.

    `resolve`: look its name up; behind a proxy only the proxy can.

    Raises:
        UserError: it is private. OSError: it is not known.
    """
    if _is_allowed(host):
        return
    found = [host]
    if resolve:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, 443)]
    for address in found:
        if _is_private(address):
            raise UserError(
                f"{host} is a private address ({address}); it must be a public one, or one that the"
                " administrator allows (`sources.allowed` of the chart)"
            )


def _is_allowed(host: str) -> bool:
    return host in [name for name in os.environ.get(ALLOWED, "").split(",") if name]


def _is_private(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address.split("%")[0])
    except ValueError:
        return False  # a name, for a proxy to look up
    mapped = getattr(found, "ipv4_mapped", None)
    return not (mapped or found).is_global


class _Connection(HTTPSConnection):
    """A connection that looks at whom it reached."""

    def connect(self) -> None:
        """Connect; end it again if the address is not a public one."""
        super().connect()
        reached = self.sock.getpeername()[0] if self.sock and not self.proxy else ""
        if reached and _is_private(str(reached)) and not _is_allowed(self.host):
            self.close()
            raise UserError(
                f"{self.host} is a private address ({reached}); it must be a public one"
            )


class _Pool(HTTPSConnectionPool):
    ConnectionCls = _Connection


class _PublicOnly(HTTPAdapter):
    """Looks at the host of every request, those after redirects included."""

    def init_poolmanager(self, *arguments: Any, **settings: Any) -> None:
        """Use connections that look at whom they reached."""
        super().init_poolmanager(*arguments, **settings)
        self.poolmanager.pool_classes_by_scheme = {"https": _Pool}

    def send(self, request: requests.PreparedRequest, **settings: Any) -> requests.Response:  # type: ignore[override]
        """Send a request to a host that may be asked."""
        url = str(request.url)
        proxied = select_proxy(url, settings.get("proxies") or {}) is not None
        try:
            require_public(urlsplit(url).hostname or "", resolve=not proxied)
        except OSError as error:
            raise requests.ConnectionError(str(error), request=request) from error
        return super().send(request, **settings)
