"""Objects as files: what a user wrote, and what was decided, apart; each whole or absent."""

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune_api.base import API_VERSION
from finetune_api.errors import Refusal
from finetune_api.meta import BASE_FOLDER_ANNOTATION
from finetune_api.objects import KINDS, Resource, dump, plural
from finetune_api.status import Status
from finetune_operator.admission import admit
from finetune_operator.conditions import timestamp
from finetune_operator.loop import utc_now
from finetune_operator.plan import Key

STATE_FOLDER_NAME = ".finetune"


def write_whole(path: Path, content: str) -> None:
    """Write a file so that a reader sees all of it or none of it, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    with beside.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


class Store:
    """The objects of one state folder."""

    def __init__(self, root: Path) -> None:
        """Use a state folder; it is made when something is first written."""
        self.root = root.absolute()

    def _path(self, key: Key, part: str) -> Path:
        return self.root / part / plural(key.kind) / key.namespace / f"{key.name}.json"

    def all_keys(self, kind: str | None = None) -> list[Key]:
        """Return the objects there are."""
        found = []
        for name in [kind] if kind else KINDS:
            folder = self.root / "objects" / plural(name)
            found += [Key(name, p.parent.name, p.stem) for p in sorted(folder.glob("*/[!.]*.json"))]
        return found

    def get(self, key: Key) -> Resource | None:
        """Return an object with its status, or None."""
        try:
            body = json.loads(self._path(key, "objects").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        model = KINDS[key.kind]
        status = self._path(key, "status")
        if status.is_file():
            written = json.loads(status.read_text(encoding="utf-8"))
            # A status of an object that was deleted and made again is not its own.
            if written["uid"] == body["metadata"]["uid"]:
                body["status"] = written["status"]
        fields = {name: body[name] for name in ("metadata", "spec", "status") if name in body}
        return model.model_validate_json(json.dumps(fields))

    def require(self, key: Key) -> Resource:
        """Return an object.

        Raises:
            Refusal: there is none.
        """
        found = self.get(key)
        if found is None:
            there = ", ".join(k.name for k in self.all_keys(key.kind)) or "none"
            raise Refusal(
                [f"{key.kind} '{key.name}' does not exist in {self.root}; there: {there}"]
            )
        return found

    def apply(self, body: dict[str, Any], *, base: Path) -> tuple[Key, str]:
        """Create or update an object from a manifest; return what was done.

        Raises:
            Refusal: it breaks the schema or a rule; nothing was written.
        """
        with self._writing():
            key, old, new = self._admitted(body, base)
            if old is not None:
                if old.spec == new.spec and old.metadata.annotations == new.metadata.annotations:
                    return key, "unchanged"
                generation = old.metadata.generation + (old.spec != new.spec)
                grown = new.metadata.model_copy(update={"generation": generation})
                new = new.model_copy(update={"metadata": grown})
            self._write(key, new)
        return key, "created" if old is None else "configured"

    def check(self, body: dict[str, Any], *, base: Path) -> None:
        """Refuse what `apply` would refuse; write nothing.

        Raises:
            Refusal: it breaks the schema or a rule.
        """
        self._admitted(body, base)

    def _admitted(self, body: dict[str, Any], base: Path) -> tuple[Key, Resource | None, Resource]:
        """Return an object's key, what is stored of it, and what is to be stored."""
        given = body.get("metadata")
        metadata: dict[str, Any] = dict(given) if isinstance(given, dict) else {}
        if not isinstance(metadata.get("name"), str):
            raise Refusal(["`metadata.name`: missing; it is required, set it"])
        namespace = str(metadata.get("namespace") or "default")
        key = Key(str(body.get("kind")), namespace, metadata["name"])
        old = self.get(key) if key.kind in KINDS and "/" not in key.name + namespace else None
        if old is not None and old.metadata.deletion_timestamp:
            raise Refusal(
                [f"{key.kind} '{key.name}' is being deleted; apply it again when it is gone"]
            )
        annotations = {
            **(metadata.get("annotations") or {}),
            BASE_FOLDER_ANNOTATION: str(base.absolute()),
        }
        metadata |= {
            "namespace": namespace,
            "annotations": annotations,
            "uid": old.metadata.uid if old else str(uuid.uuid4()),
            "generation": old.metadata.generation if old else 1,
            "creationTimestamp": (old and old.metadata.creation_timestamp) or timestamp(utc_now()),
        }
        return key, old, admit({**body, "metadata": metadata}, old)

    def _write(self, key: Key, resource: Resource) -> None:
        body = {"apiVersion": API_VERSION, "kind": key.kind, **dump(resource)}
        body.pop("status", None)
        write_whole(self._path(key, "objects"), json.dumps(body, indent=1))

    def mark_deleted(self, key: Key) -> None:
        """Ask for an object's end; the loop does the rest."""
        with self._writing():
            resource = self.require(key)
            ended = resource.metadata.model_copy(
                update={"deletion_timestamp": timestamp(utc_now())}
            )
            self._write(key, resource.model_copy(update={"metadata": ended}))

    def remove(self, key: Key) -> None:
        """Remove an object and its status."""
        with self._writing():
            self._path(key, "status").unlink(missing_ok=True)
            self._path(key, "objects").unlink(missing_ok=True)

    def write_status(self, key: Key, uid: str, status: Status) -> None:
        """Write a status."""
        body = {"uid": uid, "status": dump(status)}
        write_whole(self._path(key, "status"), json.dumps(body, indent=1))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Let one process at a time change objects."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "objects.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def stamp(self) -> tuple[tuple[Key, int], ...]:
        """Return what changes whenever an object does."""
        found = []
        for key in self.all_keys():
            try:
                found.append((key, self._path(key, "objects").stat().st_mtime_ns))
            except FileNotFoundError:
                continue
        return tuple(found)

    def remove_below(self, folder: Path) -> None:
        """Remove a folder of the state folder."""
        shutil.rmtree(folder, ignore_errors=True)
