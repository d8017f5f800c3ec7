"""Servers on this computer that answer as the hub, a web server and a bucket do."""

import http.server
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

COMMIT = "a" * 40
GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted"}
Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def serving(
    answer: Callable[[str, str | None], Answer], context: ssl.SSLContext | None = None
) -> Iterator[int]:
    """Serve `answer(path, authorization)`; yield the port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answer(self.path, self.headers.get("Authorization"))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def hub(path: str, token: str | None) -> Answer:
    """Answer as the hub; the repository's name says what is wrong with it."""
    name = path.split("?")[0]
    not_found = (401, {"X-Error-Code": "RepoNotFound"}, b"{}")
    if "/org/none" in name or ("/org/private" in name and token is None):
        return not_found
    if "/org/private" in name:
        return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b"{}"
    if "/org/gated" in name and "/resolve/" in name:
        return 403, GATED, b"{}"
    if "/revision/nowhere" in name:
        return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
    if "/org/down" in name:
        return 500, {}, b"{}"
    if "/tree/" in name:
        entry = {"type": "file", "path": "config.json", "size": 2, "oid": COMMIT}
        return 200, {"Content-Type": "application/json"}, json.dumps([entry]).encode()
    found = {"id": "org/name", "sha": COMMIT, "siblings": [{"rfilename": "config.json"}]}
    return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()


def web(path: str, token: str | None) -> Answer:
    """Answer with the status that the first part of the path names."""
    del token
    return int(path.split("/")[1]), {}, b""


@contextmanager
def serving_https(folder: Path) -> Iterator[tuple[int, Path]]:
    """Serve `web` over TLS; yield the port and the certificate to trust."""
    import trustme

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    trusted = folder / "authority.pem"
    authority.cert_pem.write_to_path(str(trusted))
    with serving(web, context) as port:
        yield port, trusted


@contextmanager
def serving_s3() -> Iterator[int]:
    """Serve an empty object store."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()[1]
    finally:
        server.stop()


class Services:
    """Servers, each started when it is first asked for, and the libraries that are led to them."""

    def __init__(self, stack: ExitStack, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self._stack, self._patch, self._folder = stack, patch, folder
        self._ports: dict[str, int] = {}

    def port_of(self, name: str) -> int:
        """Return the port of `hub`, `https` or `s3`."""
        if name not in self._ports:
            self._ports[name] = self._start(name)
        return self._ports[name]

    def _start(self, name: str) -> int:
        if name == "s3":
            return self._stack.enter_context(serving_s3())
        if name == "https":
            port, trusted = self._stack.enter_context(serving_https(self._folder))
            self._patch.setenv("REQUESTS_CA_BUNDLE", str(trusted))
            return port
        from huggingface_hub import constants

        port = self._stack.enter_context(serving(hub))
        endpoint = f"http://127.0.0.1:{port}"
        self._patch.setattr(constants, "HF_HUB_OFFLINE", False)
        self._patch.setattr(constants, "ENDPOINT", endpoint)
        files = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        self._patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        return port
