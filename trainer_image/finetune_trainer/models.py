"""Base models and tokenizers: checked, brought to one form in the cache, loaded."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from finetune_api.contract import Folders, PreparedModel
from finetune_api.finetunejob import BaseModelSource
from finetune_trainer import sources
from finetune_trainer.errors import UserError
from finetune_trainer.files import folder_made_whole, sha256_of

TOKENIZER_PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja", "*.py")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
WEIGHT_INDEX = "model.safetensors.index.json"


def prepare_model(source: BaseModelSource, folders: Folders) -> PreparedModel:
    """Bring a base model into the cache as a plain folder of safetensors.

    Raises:
        UserError: it does not exist, is incomplete, or may not be read as it is.
    """
    what = "`spec.model.uri`"
    patterns = [*sources.MODEL_FILES, *(sources.PICKLE_FILES if source.allow_pickle else [])]
    path = sources.fetch(source, folders, what=what, patterns=patterns)
    if path.is_file() and path.suffix == ".gguf":
        return _from_gguf(path, folders)
    if path.is_file():
        raise UserError(
            f"{what}: {source.uri} is a file; it must be a model folder or a .gguf file"
        )
    _require_complete(path, source)
    revision = _revision(path)
    target = Path(folders.cache) / "models" / revision.removeprefix("sha256:")[:24]
    if not target.exists():
        with folder_made_whole(target) as folder:
            shutil.copytree(path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
            if not _has_safetensors(path):
                _rewrite_as_safetensors(folder)
    return _prepared(target, folders, _hub_revision(path) or revision)


def _require_complete(path: Path, source: BaseModelSource) -> None:
    config = path / "config.json"
    if not config.is_file():
        raise UserError(
            f"`spec.model.uri`: {source.uri} has no config.json; it must be a transformers model"
        )
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"`spec.model.uri`: {config.name} of {source.uri} is no valid JSON: {error}"
        ) from error
    if settings.get("auto_map") and not source.trust_remote_code:
        raise UserError(
            f"`spec.model.uri`: {source.uri} brings Python code of its own; set"
            " `spec.model.trustRemoteCode: true` if you trust it, or use a model without"
        )
    pickles = [file.name for pattern in sources.PICKLE_FILES for file in path.glob(pattern)]
    if _has_safetensors(path):
        _require_shards(path)
    elif pickles and not source.allow_pickle:
        raise UserError(
            f"`spec.model.uri`: {source.uri} has its weights in pickle files ({pickles[0]}), which"
            " can run code when read; use a safetensors version, or set `spec.model.allowPickle`"
        )
    elif not pickles:
        raise UserError(
            f"`spec.model.uri`: {source.uri} has no weights; it must hold .safetensors files"
        )


def _has_safetensors(path: Path) -> bool:
    return any(path.glob("*.safetensors"))


def _require_shards(path: Path) -> None:
    index = path / WEIGHT_INDEX
    if not index.is_file():
        return
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"`spec.model.uri`: {WEIGHT_INDEX} cannot be read: {error!r}; copy the model again"
        ) from error
    if missing := sorted(name for name in names if "/" in name or not (path / name).is_file()):
        raise UserError(
            f"`spec.model.uri`: the weight file {missing[0]} is missing; copy the model again"
        )


def _revision(path: Path) -> str:
    """Identify a model by its files' content."""
    parts = [
        f"{file.relative_to(path)} {sha256_of(file)}"
        for file in sorted(path.rglob("*"))
        if file.is_file() and not file.name.startswith(".")
    ]
    return "sha256:" + hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _hub_revision(path: Path) -> str | None:
    marker = path / ".revision"
    return marker.read_text() if marker.is_file() else None


def _from_gguf(path: Path, folders: Folders) -> PreparedModel:
    """Dequantise a GGUF file, once, into a folder of safetensors."""
    revision = "sha256:" + sha256_of(path)
    target = Path(folders.cache) / "models" / revision.removeprefix("sha256:")[:24]
    if not target.exists():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        arguments: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
        print(f"Dequantising {path.name}, once", flush=True)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **arguments)
        model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **arguments)
        # The weights are no longer quantised, whatever the file was.
        model.hf_quantizer = None
        del model.config.quantization_config
        with folder_made_whole(target) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    return _prepared(target, folders, revision)


def _rewrite_as_safetensors(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=False)
    for pattern in sources.PICKLE_FILES:
        for file in folder.glob(pattern):
            file.unlink()
    with torch.no_grad():
        model.save_pretrained(folder)


def _prepared(target: Path, folders: Folders, revision: str) -> PreparedModel:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(target, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        raise UserError(
            f"`spec.model.uri`: transformers does not know this model: {str(error).splitlines()[0]}"
        ) from error
    text = config.get_text_config()
    return PreparedModel(
        folder=str(target.relative_to(folders.cache)),
        revision=revision,
        parameters=count_parameters(target),
        max_length=getattr(text, "max_position_embeddings", None),
    )


def count_parameters(folder: Path) -> int:
    """Return the number of weights in a folder, from the headers of its safetensors.

    Raises:
        UserError: a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                    size = 1
                    for length in tensors.get_slice(name).get_shape():
                        size *= length
                    total += size
        except SafetensorError as error:
            raise UserError(
                f"`spec.model.uri`: {file.name} is damaged ({error}); copy the model again"
            ) from error
    return total


def load_tokenizer(folder: Path, *, what: str = "`spec.model.uri`") -> Any:
    """Load a tokenizer from a local folder; `what` names where the user gave it.

    Raises:
        UserError: there is none, or it is slow (it cannot tell where a token stands in the text).
    """
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            f"{what} has no tokenizer; the folder must hold tokenizer.json and"
            " tokenizer_config.json; copy them from where the model comes from"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raise bare Exception for a broken file
        raise UserError(
            f"{what}: the tokenizer cannot be loaded ({_first_line(error)}); copy its files again"
        ) from error
    if not tokenizer.is_fast:
        raise UserError(
            f"{what}: the tokenizer is slow (no tokenizer.json), so it cannot tell where a token"
            " stands; convert it with transformers' `convert_slow_tokenizer`"
        )
    return tokenizer


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def load_model(folder: Path, *, dtype: str, attention: str) -> Any:
    """Load a causal language model from the cache; `dtype` is torch's name of one, or `auto`."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype="auto" if dtype == "auto" else getattr(torch, dtype),
        attn_implementation="sdpa" if attention == "auto" else attention,
        local_files_only=True,
    )
