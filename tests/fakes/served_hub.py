"""A hub on this machine: the part of its interface that a download asks for."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Repositories by kind and name: `{"models/org/name": {"file": b"..."}}`."""

    def __init__(
        self, repositories: dict[str, dict[str, bytes]], *, token: str | None = None
    ) -> None:
        self.repositories, self.token = repositories, token
        self.downloads: list[str] = []
        self.endpoint = ""

    def answer(self, path: str, authorization: str | None) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of a request."""
        parts = unquote(urlsplit(path).path).strip("/").split("/")
        if parts[0] == "api":
            kind, name, verb = parts[1], "/".join(parts[2:4]), parts[4:5]
        else:
            kind = "datasets" if parts[0] == "datasets" else "models"
            parts = parts[1:] if kind == "datasets" else parts
            name, verb = "/".join(parts[:2]), ["resolve"]
        files = self.repositories.get(f"{kind}/{name}")
        if files is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"Repository not found"
        if self.token and authorization != f"Bearer {self.token}":
            return (
                401,
                {"X-Error-Code": "GatedRepo" if authorization else "RepoNotFound"},
                b"no access",
            )
        if verb == ["resolve"]:
            return self._file(files, name, "/".join(parts[4:]))
        revision = parts[5] if len(parts) > 5 else "main"
        if revision not in ("main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"Invalid rev id"
        listed = [
            {"type": "file", "path": f, "size": len(c), "oid": _oid(c)} for f, c in files.items()
        ]
        if verb == ["tree"]:
            return 200, {}, json.dumps(listed).encode()
        about: dict[str, Any] = {
            "_id": "1", "id": name, "sha": COMMIT, "private": False, "gated": False, "disabled": False,
            "downloads": 0, "likes": 0, "tags": [], "siblings": [{"rfilename": f} for f in files],
        }  # fmt: skip
        return 200, {}, json.dumps(about).encode()

    def _file(
        self, files: dict[str, bytes], name: str, file: str
    ) -> tuple[int, dict[str, str], bytes]:
        if file not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b"Entry not found"
        self.downloads.append(f"{name}/{file}")
        return 200, {"ETag": f'"{_oid(files[file])}"', "X-Repo-Commit": COMMIT}, files[file]


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def serving(hub: Hub, *, host: str = "127.0.0.1") -> Iterator[Hub]:
    """Serve a hub on a free port of an address of this machine."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def _reply(self, *, with_body: bool) -> None:
            status, headers, body = hub.answer(self.path, self.headers.get("Authorization"))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def do_GET(self) -> None:
            self._reply(with_body=True)

        def do_HEAD(self) -> None:
            self._reply(with_body=False)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer((host, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://{host}:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
