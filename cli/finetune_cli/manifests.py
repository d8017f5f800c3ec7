"""Manifests from files, with values set on the command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        return f"{self.body.get('kind', '?')}/{_name(self.body) or '?'}"


def _name(body: dict[str, Any]) -> str:
    """Return an object's name, or nothing where it has none."""
    metadata = body.get("metadata")
    return str(metadata.get("name", "")) if isinstance(metadata, dict) else ""


def load_manifests(files: list[Path], settings: list[str]) -> list[Manifest]:
    """Return the objects of files or folders, data first.

    Raises:
        Refusal: a file cannot be read, or a setting fits nothing.
    """
    manifests = [Manifest(body, path) for path in _expanded(files) for body in _documents(path)]
    if not manifests:
        names = ", ".join(map(str, files))
        raise Refusal(
            [f"{names}: no object; write a manifest with apiVersion, kind, metadata and spec"]
        )
    for setting in settings:
        _apply_setting(manifests, setting)
    return sorted(manifests, key=lambda manifest: ORDER.get(str(manifest.body.get("kind")), 9))


def _documents(path: Path) -> list[dict[str, Any]]:
    """Return the objects of one file.

    Raises:
        Refusal: it cannot be read.
    """
    try:
        return read_documents(path.read_text(encoding="utf-8"), source=str(path))
    except UnicodeDecodeError as error:
        raise Refusal(
            [f"{path}: byte {error.start} is not valid UTF-8; save the file as UTF-8"]
        ) from error
    except OSError as error:
        raise Refusal([f"{path}: {error.strerror}; make the file readable"]) from error
    except ManifestError as error:
        advice = "" if ";" in str(error) else "; correct it there"
        raise Refusal([f"{error}{advice}"]) from error


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
    if not equals or not all(path.split(".")):
        raise Refusal([f"--set {setting}: it must be PATH=VALUE, e.g. spec.training.maxSteps=10"])
    kind, _, name = (target or "FineTuneJob/").partition("/")
    kind = SHORT_NAMES.get(kind, kind)
    chosen = [
        manifest.body
        for manifest in manifests
        if manifest.body.get("kind") == kind and (not name or _name(manifest.body) == name)
    ]
    if not chosen:
        there = ", ".join(sorted({manifest.label for manifest in manifests}))
        wanted = f"{kind} '{name}'" if name else kind
        raise Refusal([f"--set {setting}: these files hold no {wanted}; name one of {there}"])
    value = _value(text, setting)
    for body in chosen:
        _set(body, path.split("."), value, setting)


def _value(text: str, setting: str) -> Any:
    """Return what a text stands for in a manifest; nothing, to leave a field out.

    Raises:
        Refusal: it is no YAML.
    """
    try:
        return read_documents(f"value: {text}", source="")[0]["value"]
    except ManifestError as error:
        problem = str(error).partition(": ")[2]
        raise Refusal(
            [f"--set {setting}: '{text}' is no value ({problem}); correct it, or put it in quotes"]
        ) from error


def _set(body: dict[str, Any], parts: list[str], value: Any, setting: str) -> None:
    node: Any = body
    for place, part in enumerate(parts[:-1], start=1):
        node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            whole = ".".join(parts[:place])
            raise Refusal(
                [f"--set {setting}: `{whole}` holds no fields; set it whole: {whole}=VALUE"]
            )
    if value is None:
        node.pop(parts[-1], None)
    else:
        node[parts[-1]] = value


def kind_of(word: str) -> str:
    """Return the kind that a word on the command line means.

    Raises:
        Refusal: it means none.
    """
    for kind in KINDS:
        if word.lower() in (kind.lower(), f"{kind.lower()}s"):
            return kind
    if word in SHORT_NAMES:
        return SHORT_NAMES[word]
    raise Refusal([f"'{word}' is no kind; it must be {', '.join(SHORT_NAMES)} or a full name"])
