"""`finetune watch`: what becomes of an object, until it has ended."""

import json
import time
from collections.abc import Iterator
from typing import Any

from finetune_api.errors import Refusal
from finetune_api.finetunejob import FineTuneJob
from finetune_api.objects import Resource
from finetune_cli.cluster.connection import SILENT_STREAM_SECONDS, Cluster
from finetune_cli.cluster.objects import is_over, path_of_kind, presentable, read, typed
from finetune_cli.cluster.refusals import Unreachable
from finetune_cli.cluster.results import result_lines
from finetune_cli.screen import Screen, escaped
from finetune_cli.words import INTERRUPTED

WATCH_SECONDS = "300"
LONGEST_OUTAGE_SECONDS = 120.0
AGAIN_SECONDS = 2.0


class Watcher:
    """Shows one object as it changes."""

    def __init__(self, cluster: Cluster, kind: str, name: str) -> None:
        """Show nothing yet."""
        self._cluster, self._kind, self._name = cluster, kind, name
        self._screen = Screen("text")
        self._told: tuple[str, str] | None = None

    def run(self) -> int:
        """Show an object until it has ended; return the exit code."""
        try:
            for body in self._states():
                resource = typed(presentable(body))
                self._show(resource)
                if is_over(resource):
                    self._screen.close()
                    return self._ended(resource)
        except KeyboardInterrupt:
            again = self._cluster.hint("watch", self._name)
            self._screen.close()
            self._screen.say(f"\n{self._name} goes on in the cluster. Watch it again: {again}")
            return INTERRUPTED
        finally:
            self._screen.close()
        self._screen.say(f"{self._kind} {self._name} was deleted")
        return 1

    def _states(self) -> Iterator[dict[str, Any]]:
        """Yield each state of an object until it is deleted; a lost connection is made again.

        Raises:
            Unreachable: the server has not answered for long.
        """
        body: dict[str, Any] | None = read(self._cluster, self._kind, self._name)
        lost_at: float | None = None
        while body is not None:
            yield body
            try:
                for changed in self._changes(body):
                    body, lost_at = changed, None
                    if body is not None:
                        yield body
            except Unreachable as problem:
                if lost_at is None:
                    self._screen.say(f"! {escaped(str(problem))}; trying again")
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > LONGEST_OUTAGE_SECONDS:
                    raise
                time.sleep(AGAIN_SECONDS)

    def _changes(self, body: dict[str, Any]) -> Iterator[dict[str, Any] | None]:
        """Yield what one watch tells, and then what stands there; None when it is deleted."""
        metadata = body["metadata"]
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": metadata["resourceVersion"],
            "fieldSelector": f"metadata.name={metadata['name']}",
            "timeoutSeconds": WATCH_SECONDS,
        }
        path = path_of_kind(self._kind, metadata["namespace"])
        with self._cluster.stream(path, silence=SILENT_STREAM_SECONDS, **query) as lines:
            for line in lines:
                event = json.loads(line)
                if event["type"] == "ERROR":  # that version is too old by now
                    break
                if event["type"] == "DELETED":
                    yield None
                    return
                if event["type"] != "BOOKMARK":
                    yield event["object"]
        try:
            found = read(self._cluster, self._kind, self._name)
        except Refusal:
            found = {"metadata": {}}
        yield found if found["metadata"].get("uid") == metadata["uid"] else None

    def _show(self, resource: Resource) -> None:
        """Tell a transition, and how far a job is."""
        status = resource.status
        if self._told != (status.phase, status.reason):
            self._told = (status.phase, status.reason)
            is_bad = status.phase in ("Failed", "Restarting")
            self._screen.event(self._name, status.reason, status.message, is_warning=is_bad)
        if isinstance(resource, FineTuneJob):
            self._screen.progress(resource)

    def _ended(self, resource: Resource) -> int:
        """Tell how an object ended; return the exit code."""
        status = resource.status
        good = any(
            c.type in ("Succeeded", "Ready") and c.status == "True" for c in status.conditions
        )
        colour = "green" if good else "red"
        words = f"{self._kind} {self._name} ({status.reason}): {escaped(status.message)}"
        self._screen.say(f"[bold {colour}]{status.phase}[/] {words}")
        if good:
            for line in result_lines(resource):
                self._screen.say(f"  {escaped(line)}")
        elif isinstance(resource, FineTuneJob):
            self._screen.say(f"  More: {self._cluster.hint('why', self._name)}")
        return 0 if good else 1
