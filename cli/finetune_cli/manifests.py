"""Manifests from files, with values set on the command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finetune_api.errors import Refusal
from finetune_api.objects import KINDS, SHORT_NAMES
from finetune_api.yaml_reader import ManifestError, read_documents

ORDER = {"DatasetRegistration": 0, "FineTuneJob": 1, "ModelExport": 2}


@dataclass(frozen=True)
class Manifest:
    """One object of a file."""

    body: dict[str, Any]
    path: Path

    @property
    def label(self) -> str:
        """Return `Kind/name`, as far as it can be told."""
        name = (self.body.get("metadata") or {}).get("name", "?")
        return f"{self.body.get('kind', '?')}/{name}"


def load_manifests(files: list[Path], settings: list[str]) -> list[Manifest]:
    """Return the objects of files or folders, data first.

    Raises:
        Refusal: a file cannot be read, or a setting fits nothing.
    """
    manifests = []
    for path in _expanded(files):
        try:
            text = path.read_text(encoding="utf-8")
            documents = read_documents(text, source=str(path))
        except UnicodeDecodeError as error:
            raise Refusal(
                [f"{path}: byte {error.start} is not valid UTF-8; save the file as UTF-8"]
            ) from error
        except ManifestError as error:
            raise Refusal([str(error)]) from error
        manifests += [Manifest(body, path) for body in documents]
    if not manifests:
        raise Refusal(
            [
                f"{', '.join(map(str, files))}: no object; a manifest has apiVersion, kind, metadata, spec"
            ]
        )
    for setting in settings:
        _apply_setting(manifests, setting)
    return sorted(manifests, key=lambda manifest: ORDER.get(str(manifest.body.get("kind")), 9))


def _expanded(files: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in files:
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml", ".json"))
        elif path.exists():
            found.append(path)
        else:
            raise Refusal([f"{path}: no such file; name a manifest or a folder of manifests"])
    return found


def _apply_setting(manifests: list[Manifest], setting: str) -> None:
    """Set `[KIND/NAME:]PATH=VALUE`; without an object it is meant for every FineTuneJob."""
    target, _, assignment = (
        setting.rpartition(":") if ":" in setting.split("=", 1)[0] else ("", "", setting)
    )
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise Refusal([f"--set {setting}: it must be PATH=VALUE, e.g. spec.training.maxSteps=10"])
    kind, _, name = (target or "FineTuneJob/").partition("/")
    kind = SHORT_NAMES.get(kind, kind)
    chosen = [
        manifest.body
        for manifest in manifests
        if manifest.body.get("kind") == kind
        and (not name or (manifest.body.get("metadata") or {}).get("name") == name)
    ]
    if not chosen:
        raise Refusal([f"--set {setting}: there is no {kind} {name or 'in these files'}"])
    value = yaml.safe_load(text) if text else None
    if isinstance(value, str):
        value = read_documents(f"value: {text}", source="--set")[0]["value"]
    for body in chosen:
        _set(body, path.split("."), value, setting)


def _set(body: dict[str, Any], parts: list[str], value: Any, setting: str) -> None:
    node: Any = body
    for part in parts[:-1]:
        node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise Refusal(
                [f"--set {setting}: `{part}` holds no fields; set the whole value instead"]
            )
    if value is None:
        node.pop(parts[-1], None)
    else:
        node[parts[-1]] = value


def kind_of(word: str) -> str:
    """Return the kind that a word on the command line means.

    Raises:
        Refusal: none.
    """
    for kind in KINDS:
        if word.lower() in (kind.lower(), f"{kind.lower()}s"):
            return kind
    if word in SHORT_NAMES:
        return SHORT_NAMES[word]
    raise Refusal([f"'{word}' is no kind; it must be {', '.join(SHORT_NAMES)} or a full name"])
