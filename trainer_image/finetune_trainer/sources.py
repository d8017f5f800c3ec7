"""Locations to local paths: hf, pvc, file, package, https, s3."""

import hashlib
import importlib.util
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from finetune_api.contract import Folders
from finetune_api.storage import Location, SecretReference
from finetune_trainer.errors import DataError, Infrastructure, StepError, UserError
from finetune_trainer.files import folder_made_whole

MODEL_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.gguf", "*.py"]
PICKLE_FILES = ["*.bin", "*.pt", "*.pth"]
DATA_FILES = ["*.jsonl", "*.json", "*.csv", "*.parquet"]
HTTP_TIMEOUT_SECONDS = 60
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
        return {key: (folder / key).read_text(encoding="utf-8").strip() for key in keys}
    found = {key: os.environ[key] for key in SECRET_KEYS if key in os.environ}
    if not found:
        raise UserError(
            f"`credentialsSecretRef`: secret '{reference.name}' is missing; create it with one of the"
            f" keys {known} (under `finetune local` as files {folder}/<KEY>, or in the environment)"
        )
    return found


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
        secret = credentials(location.credentials_secret_ref, folders)
        match scheme:
            case "pvc" | "file":
                path = claim_path(location.uri, folders)
            case "package":
                path = _package_path(location.uri)
            case "hf":
                path = _from_hub(location, folders, secret, patterns)
            case "https":
                path = _from_https(location.uri, folders)
            case _:
                path = _from_s3(location.uri, folders, secret)
    except StepError as error:
        raise type(error)(f"{what}: {error}") from error
    if not path.exists():
        raise UserError(
            f"{what}: {location.uri} does not exist (looked at {path}); correct the location"
        )
    return path


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


def _cache_folder(folders: Folders, key: str) -> Path:
    return Path(folders.cache) / "downloads" / hashlib.sha256(key.encode()).hexdigest()[:24]


def _from_hub(
    location: Location, folders: Folders, secret: dict[str, str], patterns: list[str]
) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    repository = location.uri.removeprefix("hf://")
    kind = "dataset" if repository.startswith("datasets/") else "model"
    repository = repository.removeprefix("datasets/")
    token = secret.get("HF_TOKEN") or False
    try:
        revision = huggingface_hub.HfApi(token=token).repo_info(
            repository, repo_type=kind, revision=location.revision
        ).sha  # fmt: skip
        target = _cache_folder(folders, f"hf:{kind}:{repository}:{revision}")
        if not target.exists():
            with folder_made_whole(target) as folder:
                huggingface_hub.snapshot_download(
                    repository, repo_type=kind, revision=revision, local_dir=folder, token=token,
                    allow_patterns=patterns,
                )  # fmt: skip
                (folder / ".revision").write_text(str(revision))
    except errors.GatedRepoError as error:
        raise UserError(
            f"{location.uri} is gated: it needs a token whose owner was granted access; set"
            " `credentialsSecretRef` to a secret with HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        hint = "" if secret else ", or it is private and needs `credentialsSecretRef` with HF_TOKEN"
        raise UserError(
            f"{location.uri} does not exist on the hub{hint}; correct the name"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{location.uri} has no revision '{location.revision}'; correct `revision`"
        ) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise Infrastructure(
            f"{location.uri} cannot be downloaded: {str(error).splitlines()[0]}"
        ) from error
    except errors.HFValidationError as error:
        raise UserError(
            f"{location.uri} is no repository name; it must be hf://org/name"
        ) from error
    return target


def _from_https(uri: str, folders: Folders) -> Path:
    import requests

    name = Path(urlsplit(uri).path).name or "download"
    target = _cache_folder(folders, uri)
    if (target / name).exists():
        return target / name
    try:
        with requests.get(uri, stream=True, timeout=HTTP_TIMEOUT_SECONDS) as response:
            if 400 <= response.status_code < 500:
                raise UserError(f"{uri} answered {response.status_code}; correct the address")
            response.raise_for_status()
            with folder_made_whole(target) as folder, (folder / name).open("wb") as file:
                for chunk in response.iter_content(1 << 20):
                    file.write(chunk)
    except requests.RequestException as error:
        raise Infrastructure(f"{uri} cannot be downloaded: {error}") from error
    return target / name


def _from_s3(uri: str, folders: Folders, secret: dict[str, str]) -> Path:
    import botocore.exceptions
    import s3fs

    system = s3fs.S3FileSystem(
        anon="AWS_ACCESS_KEY_ID" not in secret,
        key=secret.get("AWS_ACCESS_KEY_ID"),
        secret=secret.get("AWS_SECRET_ACCESS_KEY"),
        endpoint_url=secret.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL"),
        client_kwargs={"region_name": secret.get("AWS_REGION", "us-east-1")},
    )
    source = uri.removeprefix("s3://").rstrip("/")
    try:
        found = system.info(source)
        stamp = found.get("ETag") or sorted(
            (name, entry.get("ETag")) for name, entry in system.find(source, detail=True).items()
        )
        target = _cache_folder(folders, f"{uri}:{stamp}")
        if not target.exists():
            with folder_made_whole(target) as folder:
                system.get(source, str(folder / Path(source).name), recursive=True)
    except FileNotFoundError as error:
        raise UserError(f"{uri} does not exist; correct bucket and key") from error
    except PermissionError as error:
        raise UserError(
            f"{uri} may not be read with these credentials; set `credentialsSecretRef`"
        ) from error
    except (OSError, botocore.exceptions.BotoCoreError) as error:
        raise Infrastructure(f"{uri} cannot be read: {error}") from error
    return target / Path(source).name


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
