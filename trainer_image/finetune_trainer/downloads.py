"""Locations that are downloaded: the hub, https, s3. Once, into the cache."""

import hashlib
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from finetune_api.contract import Folders
from finetune_api.storage import Location
from finetune_trainer.errors import Infrastructure, StepError, UserError, one_line
from finetune_trainer.files import folder_made_whole

HTTP_TIMEOUT_SECONDS = 60
AS_IT_IS = {"Accept-Encoding": "identity"}
PASSING_STATUS = (408, 425, 429)


def _cache_folder(folders: Folders, key: str) -> Path:
    return Path(folders.cache) / "downloads" / hashlib.sha256(key.encode()).hexdigest()[:24]


def from_hub(
    location: Location, folders: Folders, secret: dict[str, str], patterns: list[str]
) -> Path:
    """Return a folder with a repository's files that fit the patterns, at one commit.

    Raises:
        UserError: there is none, or it may not be read. Infrastructure: the network.
    """
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
    except (errors.HTTPError, errors.HFValidationError, OSError) as error:
        raise _hub_refusal(error, location, has_token=bool(token)) from error
    return target


def _hub_refusal(error: Exception, location: Location, *, has_token: bool) -> StepError:
    """Return what the hub's answer means for the user."""
    from huggingface_hub import errors

    uri, reason = location.uri, next(iter(str(error).splitlines()), type(error).__name__)
    give = "set `credentialsSecretRef` to a secret with HF_TOKEN"
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if isinstance(error, errors.HFValidationError):
        return UserError(f"{uri} is no repository name; it must be hf://org/name; correct it")
    if isinstance(error, errors.GatedRepoError):
        return UserError(f"{uri} is gated: it needs a token whose owner was granted access; {give}")
    if isinstance(error, errors.RepositoryNotFoundError):
        hint = "" if has_token else f", or it is private: then {give}"
        return UserError(f"{uri} does not exist on the hub; correct the name{hint}")
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{uri} has no revision '{location.revision}'; correct `revision`")
    if status in (401, 403):
        renew = "renew the HF_TOKEN of the secret" if has_token else give
        return UserError(f"{uri} may not be read ({status}): {reason}; {renew}")
    return Infrastructure(f"{uri} cannot be downloaded: {reason}; is the network up?")


def from_https(uri: str, folders: Folders) -> Path:
    """Return the file of an address, downloaded once.

    Raises:
        UserError: there is none, or it may not be read. Infrastructure: the network.
    """
    import requests

    from finetune_trainer.public import session

    public, _, query = uri.partition("?")  # a signed address carries a secret behind the ?
    name = Path(urlsplit(uri).path).name or "download"
    target = _cache_folder(folders, uri)
    if (target / name).exists():
        return target / name
    try:
        with (
            session() as reader,
            reader.get(
                uri, stream=True, timeout=HTTP_TIMEOUT_SECONDS, headers=AS_IT_IS
            ) as response,
        ):
            _require_found(response, public)
            with folder_made_whole(target) as folder, (folder / name).open("wb") as file:
                for chunk in response.iter_content(1 << 20):
                    file.write(chunk)
    except ValueError as error:  # the libraries' errors of addresses all are
        raise UserError(
            f"{public} is no address; it must be https://host/path; correct it"
        ) from error
    except requests.RequestException as error:
        reason = str(error).replace(query, "...") if query else str(error)
        raise Infrastructure(
            f"{public} cannot be downloaded: {reason}; is the network up?"
        ) from error
    return target / name


def _require_found(response: Any, public: str) -> None:
    status = response.status_code
    if status in (401, 403):
        raise UserError(
            f"{public} may not be read ({status}); https:// is read without credentials; use a public"
            " or a signed address"
        )
    if 400 <= status < 500 and status not in PASSING_STATUS:
        raise UserError(f"{public} answered {status}; correct the address")
    response.raise_for_status()
    if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
        raise UserError(
            f"{public} is sent compressed ({encoding}), which could be of any size; it must be sent as"
            " it is; unpack it there"
        )


def from_s3(uri: str, folders: Folders, secret: dict[str, str]) -> Path:
    """Return the file or folder of a key, as it is now.

    Raises:
        UserError: there is none, or it may not be read so. Infrastructure: the network.
    """
    from botocore.exceptions import BotoCoreError

    source = uri.removeprefix("s3://").rstrip("/")
    try:
        system = _s3(secret)
        found = system.info(source)
        stamp = found.get("ETag") or sorted(
            (name, entry.get("ETag")) for name, entry in system.find(source, detail=True).items()
        )
        target = _cache_folder(folders, f"{uri}:{stamp}")
        if not target.exists():
            with folder_made_whole(target) as folder:
                system.get(source, str(folder / Path(source).name), recursive=True)
    except (OSError, ValueError, BotoCoreError) as error:
        raise _s3_refusal(error, uri, has_secret=bool(secret)) from error
    return target / Path(source).name


def _s3_refusal(error: Exception, uri: str, *, has_secret: bool) -> StepError:
    """Return what an error of the storage, or of its settings, means for the user."""
    from botocore import exceptions

    if isinstance(error, FileNotFoundError):
        return UserError(f"{uri} does not exist; correct bucket and key")
    if isinstance(error, PermissionError):
        return UserError(
            f"{uri} may not be read {'with these credentials' if has_secret else 'anonymously'}; set"
            " `credentialsSecretRef` to a secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    network = (OSError, exceptions.ConnectionError, exceptions.HTTPClientError)
    if isinstance(error, network):
        return Infrastructure(f"{uri} cannot be read: {error}; is the network up?")
    return UserError(
        f"{uri} cannot be read with this secret: {one_line(error)}; correct its AWS_* keys, or the location"
    )


def _s3(secret: dict[str, str]) -> Any:
    import s3fs

    from finetune_trainer import public

    given = secret.get("AWS_ENDPOINT_URL")
    if given and public.ALLOWED in os.environ:
        public.require_public(urlsplit(given).hostname or "")
    return s3fs.S3FileSystem(
        anon="AWS_ACCESS_KEY_ID" not in secret,
        key=secret.get("AWS_ACCESS_KEY_ID"),
        secret=secret.get("AWS_SECRET_ACCESS_KEY"),
        endpoint_url=given or os.environ.get("AWS_ENDPOINT_URL"),
        client_kwargs={"region_name": secret.get("AWS_REGION", "us-east-1")},
    )
