"""The output folder of a run: claimed first, filled beside, complete by one rename.

`<output>.incomplete/` with `owner.json` is the claim; `<output>/` with its manifest is a result.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_api.base import StatusModel
from finetune_api.contract import MANIFEST_FILE, JobFile
from finetune_api.modelexport import Verification
from finetune_api.status import Artifact
from finetune_trainer.errors import VANISHED, Infrastructure, UserError, classify
from finetune_trainer.files import describe_files, sync_folder, sync_tree, write_whole
from finetune_trainer.sources import claim_path

OWNER_FILE = "owner.json"


class OutputManifest(StatusModel):
    """What a complete output was made from and consists of."""

    uid: str
    namespace: str
    name: str
    run: int
    config_digest: str = ""
    dataset_digests: dict[str, str] = {}
    model_revision: str = ""
    steps: int = 0
    artifacts: list[Artifact] = []
    files: dict[str, dict[str, Any]] = {}
    verification: Verification | None = None


def read_manifest(folder: Path) -> OutputManifest | None:
    """Return the manifest of a complete output, or None where there is none that can be read."""
    try:
        text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
        return OutputManifest.model_validate_json(text)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def require_usable(file: JobFile) -> None:
    """Claim the output location for this job.

    Raises:
        UserError: it cannot be written, or another job holds it.
    """
    assert file.job is not None
    claim(file, overwrite=bool(file.job.output and file.job.output.overwrite))


def claim(file: JobFile, *, overwrite: bool) -> None:
    """Make the incomplete folder of an output this job's own.

    Raises:
        UserError: it cannot be written, or another job holds it.
    """
    field = _field(file)
    try:
        _take(file, _incomplete(claim_path(file.output, file.folders)), overwrite=overwrite)
    except UserError as error:
        raise UserError(f"{field}: {error}") from error
    except OSError as error:
        known = classify(error)
        if isinstance(known, Infrastructure) and not isinstance(error, VANISHED):
            raise known from error
        raise UserError(
            f"{field}: {file.output} cannot be written ({error.strerror}: {error.filename});"
            " make it writable, or choose another location"
        ) from error


def _field(file: JobFile) -> str:
    """Return where a user chose the output; an export of a job goes beside the job's."""
    return (
        "`spec.output.uri`" if file.job else "`spec.destination.uri` (of a job: `spec.output.uri`)"
    )


def _take(file: JobFile, folder: Path, *, overwrite: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / OWNER_FILE
    if not owner.exists():
        _own(folder, file)
    holder = _holder(owner)
    if holder["uid"] == file.uid:
        return
    if file.takes_over and (holder["namespace"], holder["name"]) == (file.namespace, file.name):
        overwrite = True  # an earlier object of this name, which has ended
    if not overwrite:
        other = ", or set `spec.output.overwrite: true`" if file.job else ""
        raise UserError(
            f"{file.output} is held by unfinished work of '{holder['name']}' (uid {holder['uid']});"
            f" choose another location, or delete {folder.name} if that job is gone{other}"
        )
    shutil.rmtree(folder)
    folder.mkdir()
    _own(folder, file)


def _own(folder: Path, file: JobFile) -> None:
    owner = {"uid": file.uid, "namespace": file.namespace, "name": file.name}
    write_whole(folder / OWNER_FILE, json.dumps(owner))


def _holder(owner: Path) -> dict[str, str]:
    """Return who holds a folder; whoever wrote something else there is unknown, and holds it too."""
    try:
        found = json.loads(owner.read_text(encoding="utf-8"))
        namespace = str(found.get("namespace", ""))
        return {"uid": str(found["uid"]), "namespace": namespace, "name": str(found["name"])}
    except (ValueError, KeyError, TypeError):
        return {"uid": "unknown", "namespace": "", "name": "unknown"}


def held_by(folder: Path) -> str | None:
    """Return `namespace/name` of the object whose unfinished work a folder holds, or None."""
    owner = folder / OWNER_FILE
    if not owner.is_file():
        return None
    found = _holder(owner)
    return f"{found['namespace']}/{found['name']}"


def find_same(file: JobFile, model_revision: str) -> OutputManifest | None:
    """Return the manifest of a result already there that was made from the same inputs.

    Raises:
        UserError: something else is there and `overwrite` is not set.
    """
    target = claim_path(file.output, file.folders)
    assert file.job is not None
    if not target.exists():
        return None
    manifest = read_manifest(target)
    digests = {dataset.name: dataset.digest for dataset in file.datasets}
    if manifest and (manifest.config_digest, manifest.dataset_digests, manifest.model_revision) == (
        file.config_digest, digests, model_revision,
    ):  # fmt: skip
        shutil.rmtree(_incomplete(target), ignore_errors=True)
        return manifest
    if file.job.output and file.job.output.overwrite:
        return None
    shutil.rmtree(_incomplete(target), ignore_errors=True)
    what = (
        f"the result of job '{manifest.name}' (uid {manifest.uid})"
        if manifest
        else "something else"
    )
    raise UserError(
        f"`spec.output.uri`: {file.output} already holds {what}, made from other inputs; nothing was"
        " changed; choose another `spec.output.uri`, raise `spec.rerun`, or set"
        " `spec.output.overwrite: true`"
    )


def published(file: JobFile) -> OutputManifest | None:
    """Return this job's own result if it is already complete."""
    manifest = read_manifest(claim_path(file.output, file.folders))
    own = manifest is not None and manifest.uid == file.uid and manifest.run == file.run
    return manifest if own else None


def require_replaceable(file: JobFile) -> None:
    """Refuse to put a result in the place of what is not an earlier one of the same object.

    Raises:
        UserError: something else is there, and `spec.output.overwrite` is not set.
    """
    target = claim_path(file.output, file.folders)
    overwrite = file.job is not None and file.job.output is not None and file.job.output.overwrite
    if overwrite or not target.exists():
        return
    found = read_manifest(target)
    if found is None or (found.namespace, found.name) != (file.namespace, file.name):
        what = f"the result of '{found.namespace}/{found.name}'" if found else "something else"
        raise UserError(
            f"{_field(file)}: {file.output} already holds {what}; nothing was changed; move it away, or"
            " choose another location"
        )


def publish(file: JobFile, fill: Callable[[Path], OutputManifest]) -> OutputManifest:
    """Fill the claimed folder and make it the result, by one rename.

    Raises:
        UserError: something else came to be in its place.
    """
    require_replaceable(file)
    target = claim_path(file.output, file.folders)
    folder = _incomplete(target)
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name != OWNER_FILE:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    manifest = fill(folder)
    leave_out = frozenset({OWNER_FILE, MANIFEST_FILE})
    manifest = manifest.model_copy(update={"files": describe_files(folder, leave_out=leave_out)})
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(by_alias=True, indent=1))
    sync_tree(folder)
    replaced = target.with_name(f".{target.name}.replaced")
    if target.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        target.rename(replaced)
    folder.rename(target)
    sync_folder(target.parent)
    (target / OWNER_FILE).unlink(missing_ok=True)
    shutil.rmtree(replaced, ignore_errors=True)
    return manifest


def _incomplete(target: Path) -> Path:
    return target.with_name(f"{target.name}.incomplete")


def total_size(manifest: OutputManifest) -> int:
    """Return the bytes of all files of an output."""
    return sum(int(entry["size"]) for entry in manifest.files.values())


def digest(manifest: OutputManifest) -> str:
    """Return the digest of all files of an output."""
    text = json.dumps(manifest.files, sort_keys=True)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
