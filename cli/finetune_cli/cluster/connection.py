"""The way to the API server: REST paths, JSON in and out, and plain words when it does not work."""

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from finetune_cli.cluster.kubeconfig import Login, log_in
from finetune_cli.cluster.refusals import refuse, unreachable
from finetune_cli.words import program

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0
SILENT_STREAM_SECONDS = 90.0
"""Bookmarks come about every minute: a watch that is silent for longer is dead."""
PAGE = "500"
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
MANAGER = "finetune"


class Cluster:
    """Calls to one API server, in one namespace unless told otherwise."""

    def __init__(self, context: str | None = None, namespace: str | None = None) -> None:
        """Log in with a context of the user's kubeconfig."""
        self._given = {"--context": context, "-n": namespace}
        self._login: Login = log_in(context)
        self.server = self._login.server
        self.namespace = namespace or self._login.namespace
        self.is_namespace_given = namespace is not None

    def within(self, namespace: str) -> "Cluster":
        """Return the same cluster, in another namespace."""
        if namespace == self.namespace:
            return self
        return Cluster(self._given["--context"], namespace)

    def hint(self, *words: str) -> str:
        """Return a command for the user to type: this program, on the same cluster and namespace."""
        options = [part for name, value in self._given.items() if value for part in (name, value)]
        return f"{program()} {shlex.join([*words, *options])}"

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """Read one object or list."""
        return self.call("GET", path, query=query)

    def items(self, path: str, **query: str) -> Iterator[dict[str, Any]]:
        """Yield the objects of a list, page by page."""
        query["limit"] = PAGE
        while True:
            page = self.get(path, **query)
            yield from page.get("items") or []
            if not (token := page.get("metadata", {}).get("continue")):
                return
            query["continue"] = token

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """Make one call and return what the server answered.

        Raises:
            Problem: it cannot be reached, or may not be asked. Refused: it refuses what was asked.
        """
        client = self._login.client
        arguments = client.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        timeout = (CONNECT_SECONDS, ANSWER_SECONDS)
        with self._reached():
            answer = client.call_api(*arguments, _request_timeout=timeout)
            content = answer.read()
        if answer.status >= 400:
            self._refuse(answer.status, content, method=method, path=path)
        return dict(json.loads(content))

    @contextmanager
    def stream(
        self, path: str, *, silence: float | None, **query: str
    ) -> Iterator[Iterator[bytes]]:
        """Give the lines of an answer as they come; it is cut off when it is silent for too long."""
        arguments = self._login.client.param_serialize(
            "GET",
            path,
            query_params=list(query.items()),
            header_params={"Accept": "*/*"},
            auth_settings=["BearerToken"],
        )
        with self._reached():
            answer = self._login.client.call_api(
                *arguments, _request_timeout=(CONNECT_SECONDS, silence)
            )
            if answer.status >= 400:
                self._refuse(answer.status, answer.read(), method="GET", path=path)
        try:
            yield self._lines(answer.response)
        finally:
            answer.response.close()

    def _lines(self, response: Any) -> Iterator[bytes]:
        rest = b""
        with self._reached():
            for chunk in response.stream():
                *whole, rest = (rest + chunk).split(b"\n")
                yield from (line + b"\n" for line in whole)
        if rest:
            yield rest

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Say in one line why the server was not reached."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except (ApiException, HTTPError, OSError) as error:
            raise unreachable(error, server=self.server) from error

    def _refuse(self, status: int, content: bytes, *, method: str, path: str) -> NoReturn:
        raise refuse(status, content, asked=f"{method} {path}", login=self._login)
