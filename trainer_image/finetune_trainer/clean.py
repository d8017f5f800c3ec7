"""`clean`: remove an object's output from a claim, when it was deleted and nothing is retained.

Only what is provably the object's own goes: folders whose manifest, or whose owner file while they
are unfinished, names it. Whatever else lies there was put there by somebody.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from finetune_api.contract import ExitCode, Folders
from finetune_trainer.errors import UserError
from finetune_trainer.outputs import held_by, read_manifest
from finetune_trainer.sources import claim_path

JOB, EXPORT = "FineTuneJob", "ModelExport"


def main(arguments: list[str]) -> int:
    """Remove an object's folders of a claim; return the exit code."""
    parser = argparse.ArgumentParser(prog="finetune_trainer clean", description=__doc__)
    parser.add_argument("--location", required=True, help="pvc://claim/path of the folder")
    parser.add_argument("--claims", required=True, help="where claims are mounted")
    parser.add_argument("--owner", required=True, help="namespace/name of the object")
    parser.add_argument("--kind", choices=(JOB, EXPORT), default=JOB, help="kind of the object")
    given = parser.parse_args(arguments)
    try:
        folder = claim_path(given.location, Folders(claims=given.claims))
    except UserError as error:
        print(error, file=sys.stderr)
        return ExitCode.USER_ERROR
    for path in list(_candidates(folder, given.kind)):
        if held_by(path) == given.owner or _made_by(path) == given.owner:
            try:
                shutil.rmtree(path)
            except OSError as error:
                print(f"{path} could not be removed: {error}", file=sys.stderr)
                return ExitCode.INFRASTRUCTURE
            print(f"removed {path}")
        else:
            print(f"{path} is not known to be of {given.owner}; it stays")
    _remove_empty(folder)
    return ExitCode.DONE


def _candidates(folder: Path, kind: str) -> Iterator[Path]:
    """Yield the folders that an object makes: an export one, a job one a run and one an export."""
    if kind == EXPORT:
        found = [folder, folder.with_name(f"{folder.name}.incomplete"),
                 folder.with_name(f".{folder.name}.replaced")]  # fmt: skip
        yield from (path for path in found if path.is_dir())
        return
    for parent in (folder, *folder.glob("exports/*")):
        if parent.is_dir():
            yield from (p for p in parent.iterdir() if p.is_dir() and p.name != "exports")


def _made_by(folder: Path) -> str | None:
    found = read_manifest(folder)
    return f"{found.namespace}/{found.name}" if found else None


def _remove_empty(folder: Path) -> None:
    for path in (*folder.glob("exports/*"), folder / "exports", folder):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
