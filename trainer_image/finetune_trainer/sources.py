"""Locations to local paths: hf, pvc, file, package, https, s3."""

import importlib.util
import os
import re
from pathlib import Path

from finetune_api.contract import Folders
from finetune_api.storage import Location, SecretReference
from finetune_trainer import downloads
from finetune_trainer.errors import DataError, StepError, UserError

MODEL_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.gguf", "*.py"]
PICKLE_FILES = ["*.bin", "*.pt", "*.pth"]
DATA_FILES = ["*.jsonl", "*.json", "*.csv", "*.parquet"]
CLAIM_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
SECRET_KEYS = (
    "HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION",
)  # fmt: skip


def claim_path(uri: str, folders: Folders) -> Path:
    """Return the path of a `pvc://` or `file://` location; it may not exist yet.

    Raises:
        UserError: the path leaves its claim, or `file://` is not allowed here.
    """
    scheme, rest = uri.split("://", 1)
    if scheme == "file" and not folders.base:
        raise UserError(f"{uri}: file:// works under `finetune local` only; use pvc://claim/path")
    root = Path(folders.base if scheme == "file" else folders.claims)
    try:
        path = (root / rest).resolve()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, a loop of links
        raise UserError(f"{uri}: {error} is no path of this computer; correct it") from error
    if scheme == "pvc":
        _check_claim(uri, path, root.resolve(), rest.split("/", 1)[0])
    return path


def _check_claim(uri: str, path: Path, root: Path, name: str) -> None:
    if not CLAIM_NAME.fullmatch(name):
        raise UserError(f"{uri}: {name!r} is no name of a claim; it must be pvc://claim/path")
    if root / name not in (path, *path.parents):
        raise UserError(
            f"{uri}: the path leaves its claim; it must stay below pvc://{name}/; remove `..` and"
            " links that lead outside"
        )


def credentials(reference: SecretReference | None, folders: Folders) -> dict[str, str]:
    """Return a secret's keys and values; without a reference nothing is sent.

    Raises:
        UserError: neither the secret's folder nor the environment holds a known key.
    """
    if reference is None:
        return {}
    folder, known = Path(folders.secrets) / reference.name, ", ".join(SECRET_KEYS)
    if folder.is_dir():
        keys = sorted(path.name for path in folder.iterdir() if path.is_file())
        if not set(keys) & set(SECRET_KEYS):
            raise UserError(
                f"`credentialsSecretRef`: secret '{reference.name}' has the keys"
                f" {', '.join(keys) or 'none'}; it must have one of {known}; add it"
            )
        return {key: _secret_value(folder / key, reference.name) for key in keys}
    found = {key: os.environ[key] for key in SECRET_KEYS if key in os.environ}
    if not found:
        raise UserError(
            f"`credentialsSecretRef`: secret '{reference.name}' is missing; create it with one of the"
            f" keys {known} (under `finetune local` as files {folder}/<KEY>, or in the environment)"
        )
    return found


def _secret_value(path: Path, name: str) -> str:
    value = path.read_bytes().decode("utf-8", "replace").strip()
    if path.name in SECRET_KEYS and not (value.isascii() and value.isprintable()):
        raise UserError(
            f"`credentialsSecretRef`: key {path.name} of secret '{name}' holds line breaks or letters"
            " that no such value has; store the value alone, as one line"
        )
    return value


def fetch(location: Location, folders: Folders, *, what: str, patterns: list[str]) -> Path:
    """Return a local path (file or folder) with the content of a location.

    Downloads go to the cache once, under a name made from location and revision.

    Raises:
        UserError, DataError: it does not exist or may not be read. Infrastructure: network.
    """
    scheme = location.uri.split("://", 1)[0]
    if location.revision and scheme != "hf":
        raise UserError(
            f"{what}: {location.uri} has no revisions (only hf:// has), but `revision` is"
            f" {location.revision!r}; remove it"
        )
    try:
        path = _path_of(location, folders, patterns)
    except StepError as error:
        raise type(error)(f"{what}: {error}") from error
    if not path.exists():
        raise UserError(
            f"{what}: {location.uri} does not exist (looked at {path}); correct the location"
        )
    return path


def _path_of(location: Location, folders: Folders, patterns: list[str]) -> Path:
    secret = credentials(location.credentials_secret_ref, folders)
    match location.uri.split("://", 1)[0]:
        case "pvc" | "file":
            return claim_path(location.uri, folders)
        case "package":
            return _package_path(location.uri)
        case "hf":
            return downloads.from_hub(location, folders, secret, patterns)
        case "https":
            return downloads.from_https(location.uri, folders)
        case _:
            return downloads.from_s3(location.uri, folders, secret)


def _package_path(uri: str) -> Path:
    module, _, name = uri.removeprefix("package://").partition("/")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{uri}: Python package '{module}' is not installed here; install it")
    root = Path(spec.submodule_search_locations[0]).resolve()
    path = (root / name).resolve()
    if path != root and root not in path.parents:
        raise UserError(f"{uri}: the path leaves the package; it must stay below it")
    return path


def data_files(path: Path, *, subset: str | None, split: str | None) -> list[Path]:
    """Return the data files of a source, in order of their names.

    Raises:
        DataError: there is none, or `subset` and `split` do not fit it.
    """
    if path.is_file():
        for name, value in (("subset", subset), ("split", split)):
            if value is not None:
                raise DataError(
                    f"`spec.source.{name}` is {value!r}, which chooses from a folder, but the source is"
                    f" the file {path.name}; remove it"
                )
        return [path]
    root = path / subset if subset else path
    if path.resolve() not in (root.resolve(), *root.resolve().parents):
        raise DataError(
            f"`spec.source.subset` {subset!r} leaves the source; it must name a folder in it"
        )
    if not root.is_dir():
        there = ", ".join(sorted(p.name for p in path.iterdir() if p.is_dir())) or "none"
        raise DataError(
            f"`spec.source.subset` {subset!r} is no folder of the source; folders there: {there};"
            " name one of them"
        )
    files = sorted(file for pattern in DATA_FILES for file in root.rglob(pattern))
    files = [file for file in files if file.name not in ("dataset_info.json", "dataset_infos.json")]
    if not files:
        raise DataError(
            f"`spec.source.uri`: the folder {root.name} holds no .jsonl, .json, .csv or .parquet file;"
            " put the data there, or correct the location"
        )
    chosen = [file for file in files if (split or "train") in file.name]
    if not chosen and split is not None:
        raise DataError(
            f"`spec.source.split` is {split!r}, but no file has that in its name; there:"
            f" {', '.join(file.name for file in files[:10])}; correct it"
        )
    return chosen or files
