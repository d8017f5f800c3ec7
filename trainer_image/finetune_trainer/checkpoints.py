"""Checkpoints that count only when whole: the manifest is written last, by rename."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune_api.contract import MANIFEST_FILE, JobFile
from finetune_trainer.files import describe_files, sha256_of, sync_tree, write_whole

STEP = re.compile(r"checkpoint-(\d+)$")


@dataclass(frozen=True)
class SavedCheckpoint:
    """A complete checkpoint."""

    folder: Path
    step: int
    world_size: int


def run_folder(file: JobFile) -> Path:
    """Return the folder of all attempts of a run."""
    return Path(file.folders.work) / f"run-{file.run}"


def attempt_folder(file: JobFile) -> Path:
    """Return the folder that this attempt alone writes to."""
    return run_folder(file) / f"attempt-{file.attempt}-{file.uid[:8]}"


def seal(folder: Path, *, step: int, world_size: int) -> None:
    """Make a checkpoint count: everything durable, then the manifest."""
    sync_tree(folder)
    manifest = {
        "step": step,
        "worldSize": world_size,
        "files": describe_files(folder, leave_out=frozenset({MANIFEST_FILE})),
    }
    write_whole(folder / MANIFEST_FILE, json.dumps(manifest, indent=1))


def newest_complete(file: JobFile) -> SavedCheckpoint | None:
    """Return the newest checkpoint of the run whose files are all as its manifest says."""
    for folder in sorted(_folders(run_folder(file)), key=_step, reverse=True):
        if (checkpoint := _checked(folder)) is not None:
            return checkpoint
        print(f"Skipped an incomplete checkpoint: {folder.name}", flush=True)
    return None


def _folders(run: Path) -> Iterator[Path]:
    return (path for path in run.glob("attempt-*/checkpoint-*") if STEP.search(path.name))


def _step(folder: Path) -> tuple[int, str]:
    found = STEP.search(folder.name)
    return (int(found.group(1)) if found else -1, folder.parent.name)


def _checked(folder: Path) -> SavedCheckpoint | None:
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        for name, entry in manifest["files"].items():
            path = folder / name
            if path.stat().st_size != entry["size"] or sha256_of(path) != entry["sha256"]:
                return None
    except (OSError, ValueError, KeyError):
        return None
    return SavedCheckpoint(folder, manifest["step"], manifest["worldSize"])


def remove_incomplete(file: JobFile) -> None:
    """Remove checkpoints without a manifest, to get their space back."""
    for folder in _folders(run_folder(file)):
        if not (folder / MANIFEST_FILE).is_file():
            shutil.rmtree(folder, ignore_errors=True)


def prune(file: JobFile, *, keep_last: int, best_step: int | None) -> None:
    """Remove all but the newest complete checkpoints and the best one; of all attempts."""
    complete = [path for path in _folders(run_folder(file)) if (path / MANIFEST_FILE).is_file()]
    kept: set[int] = set()
    for folder in sorted(complete, key=_step, reverse=True):
        step = _step(folder)[0]
        if step == best_step or len(kept) < keep_last and step not in kept:
            kept.add(step)
            continue
        # Without its manifest a half-removed checkpoint can never be taken for a whole one.
        (folder / MANIFEST_FILE).unlink()
        shutil.rmtree(folder, ignore_errors=True)
