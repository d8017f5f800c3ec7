"""`clean`: remove an object's output from a claim, when it was deleted and nothing is retained."""

import argparse
import shutil
import sys

from finetune_api.contract import ExitCode, Folders
from finetune_trainer.errors import UserError
from finetune_trainer.outputs import read_manifest
from finetune_trainer.sources import claim_path


def main(arguments: list[str]) -> int:
    """Remove one folder of a claim; return the exit code."""
    parser = argparse.ArgumentParser(prog="finetune_trainer clean", description=__doc__)
    parser.add_argument("--location", required=True, help="pvc://claim/path of the folder")
    parser.add_argument("--claims", required=True, help="where claims are mounted")
    parser.add_argument("--owner", required=True, help="namespace/name of the object")
    given = parser.parse_args(arguments)
    try:
        folder = claim_path(given.location, Folders(claims=given.claims))
    except UserError as error:
        print(error, file=sys.stderr)
        return ExitCode.USER_ERROR
    foreign = [
        path.parent
        for path in folder.rglob("manifest.json")
        if (found := read_manifest(path.parent))
        and f"{found.namespace}/{found.name}" != given.owner
    ]
    if foreign:
        print(f"{given.location} holds results of others ({foreign[0]}); nothing was removed")
        return ExitCode.USER_ERROR
    shutil.rmtree(folder, ignore_errors=True)
    for sibling in folder.parent.glob(f"{folder.name}.incomplete"):
        shutil.rmtree(sibling, ignore_errors=True)
    print(f"removed {given.location}")
    return ExitCode.DONE
