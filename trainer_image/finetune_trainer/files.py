"""Files that are whole or absent: written beside, synced, renamed."""

import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHUNK_BYTES = 1 << 20
ABANDONED_SECONDS = 86_400


def write_whole(path: Path, content: str) -> None:
    """Write a file so that a reader sees all of it or none of it, also after a crash."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make every file below a folder durable."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


@contextmanager
def folder_made_whole(target: Path) -> Iterator[Path]:
    """Yield a folder that becomes `target` by rename if the block succeeds; content-addressed.

    Whoever comes second finds `target` there and drops its own: the content is the same.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    beside.mkdir()
    try:
        yield beside
        sync_tree(beside)
        if not target.exists():
            beside.rename(target)
            sync_folder(target.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def remove_abandoned(folder: Path, name: str) -> None:
    """Remove what crashed writers of `folder/name` left beside it, a day ago or longer.

    Younger ones may belong to a writer that is at work: two jobs on the same data make the same folder.
    """
    for path in folder.glob(f".{name}.*.partial"):
        if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def describe_files(
    folder: Path, *, leave_out: frozenset[str] = frozenset()
) -> dict[str, dict[str, object]]:
    """Return `{relative name: {size, sha256}}` of every file below a folder."""
    return {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in leave_out
    }
