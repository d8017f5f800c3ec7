"""Base models and tokenizers: checked, brought to one form in the cache, loaded."""

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

from finetune_api.contract import Folders, PreparedModel
from finetune_api.finetunejob import BaseModelSource
from finetune_trainer import sources
from finetune_trainer.errors import Infrastructure, UserError, reading
from finetune_trainer.files import folder_made_whole, sha256_of
from finetune_trainer.fits import misfits, quantisation, require_loadable
from finetune_trainer.modelcode import read_code
from finetune_trainer.rewrite import require_torch, rewrite_gguf, rewrite_pickles
from finetune_trainer.skeleton import WEIGHT_INDEX, Skeleton, tensor_shapes

TOKENIZER_PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja", "*.py")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def prepare_model(
    source: BaseModelSource, folders: Folders, *, what: str = "`spec.model.uri`"
) -> PreparedModel:
    """Bring a base model into the cache as a plain folder of safetensors.

    Raises:
        UserError: it does not exist, is incomplete, or may not be read as it is.
    """
    patterns = [*sources.MODEL_FILES, *(sources.PICKLE_FILES if source.allow_pickle else [])]
    path = sources.fetch(source, folders, what=what, patterns=patterns)
    named = f"{what}: {source.uri}"
    if path.is_file() and path.suffix == ".gguf":
        return _from_gguf(path, folders, named)
    if path.is_file():
        raise UserError(f"{named} is a file; it must be a model folder or a .gguf file; correct it")
    _check_config(path, source, named)
    _check_weights(path, source, named)
    revision = _revision(path)
    target = Path(folders.cache) / "models" / revision.removeprefix("sha256:")[:24]
    if not target.exists():
        with folder_made_whole(target) as folder:
            shutil.copytree(path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
            if not _has_safetensors(path):
                rewrite_pickles(folder, named, trust_remote_code=brings_code(folder))
    return _prepared(target, folders, _hub_revision(path) or revision, named)


def _check_config(path: Path, source: BaseModelSource, named: str) -> None:
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise UserError(f"{named} is an adapter, not a model; give the base model it was made for")
    if not (path / "config.json").is_file():
        raise UserError(f"{named} has no config.json; it must be a transformers model; correct it")
    with reading(f"{named}: config.json is no valid JSON object", "copy the model again"):
        dict(json.loads((path / "config.json").read_text(encoding="utf-8")).items())
    if not brings_code(path):
        return
    if not source.trust_remote_code:
        raise UserError(
            f"{named} brings Python code of its own; set `spec.model.trustRemoteCode: true` if you"
            " trust it, or use a model without"
        )
    require_torch(f"{named}: this model's own Python code needs torch", "prepare it")


def brings_code(folder: Path) -> bool:
    """Tell whether a model names Python code of its own; such a one was let in only when trusted."""
    for name in ("config.json", "tokenizer_config.json"):
        try:
            if json.loads((folder / name).read_text(encoding="utf-8")).get("auto_map"):
                return True
        except (OSError, ValueError, AttributeError):
            continue
    return False


def _check_weights(path: Path, source: BaseModelSource, named: str) -> None:
    pickles = [file.name for pattern in sources.PICKLE_FILES for file in path.glob(pattern)]
    if _has_safetensors(path):
        _require_shards(path, named)
    elif pickles and not source.allow_pickle:
        raise UserError(
            f"{named} has its weights in pickle files ({pickles[0]}), which can run code when read;"
            " use a safetensors version, or set `spec.model.allowPickle: true` if you trust it"
        )
    elif not pickles:
        raise UserError(
            f"{named} has no weights; it must hold .safetensors files (where it has pickle files"
            " only, `spec.model.allowPickle: true` reads them); copy them there"
        )


def _has_safetensors(path: Path) -> bool:
    return any(path.glob("*.safetensors"))


def _require_shards(path: Path, named: str) -> None:
    index = path / WEIGHT_INDEX
    if not index.is_file():
        return
    with reading(f"{named}: {WEIGHT_INDEX} cannot be read", "copy the model again"):
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(name for name in names if "/" in name or not (path / name).is_file())
    if missing:
        raise UserError(
            f"{named}: the weight file {missing[0]} is missing, which {WEIGHT_INDEX} names; copy the"
            " model again"
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


def _from_gguf(path: Path, folders: Folders, named: str) -> PreparedModel:
    """Dequantise a GGUF file, once, into a folder of safetensors."""
    revision = "sha256:" + sha256_of(path)
    target = Path(folders.cache) / "models" / revision.removeprefix("sha256:")[:24]
    if not target.exists():
        with folder_made_whole(target) as folder:
            rewrite_gguf(path, folder, named)
    return _prepared(target, folders, revision, named)


def read_config(folder: Path, named: str) -> Any:
    """Read a model's configuration.

    Raises:
        UserError: transformers does not know it, or finds it wrong.
    """
    from transformers import AutoConfig

    advice = "use a model of an architecture that transformers knows, or correct its config.json"
    with reading(f"{named}: transformers refuses its config.json", advice):
        return AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=brings_code(folder)
        )


def _prepared(target: Path, folders: Folders, revision: str, named: str) -> PreparedModel:
    text = read_config(target, named).get_text_config()
    return PreparedModel(
        folder=str(target.relative_to(folders.cache)),
        revision=revision,
        parameters=sum(map(math.prod, tensor_shapes(target, named).values())),
        max_length=getattr(text, "max_position_embeddings", None),
    )


def load_tokenizer(folder: Path, *, what: str = "`spec.model.uri`") -> Any:
    """Load a tokenizer from a local folder; `what` names where the user gave it.

    Raises:
        UserError: there is none, or it is slow (it cannot tell where a token stands in the text).
    """
    from transformers import AutoTokenizer

    _require_folder(folder, what)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            f"{what} has no tokenizer; the folder must hold tokenizer.json and"
            " tokenizer_config.json; copy them from where the model comes from"
        )
    with reading(f"{what}: the tokenizer cannot be loaded", "copy its files again"):
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=brings_code(folder)
        )
    if not tokenizer.is_fast:
        raise UserError(
            f"{what}: the tokenizer is slow (no tokenizer.json), so it cannot tell where a token"
            " stands; convert it with transformers' `convert_slow_tokenizer`"
        )
    return tokenizer


def _require_folder(folder: Path, what: str) -> None:
    if not folder.exists():
        raise Infrastructure(
            f"{what}: {folder} is gone; something else cleaned the cache while the job ran; raise"
            " `spec.rerun` to prepare it again"
        )


def load_model(folder: Path, *, dtype: str, attention: str) -> Any:
    """Load a causal language model from the cache; `dtype` is torch's name of one, or `auto`.

    Raises:
        UserError: its weights are not all there, or it cannot be loaded so.
    """
    import torch

    chosen = "auto" if dtype == "auto" else getattr(torch, dtype)
    return _load(folder, "the model", attention=attention, dtype=chosen)


def load_skeleton(folder: Path, *, attention: str) -> Skeleton:
    """Return a model's modules and shapes; nothing is built, so no PyTorch is needed.

    Raises:
        UserError: its weights are not all there, or it cannot be loaded so.
    """
    what = "`spec.model.uri`"
    _require_folder(folder, what)
    shapes = tensor_shapes(folder, what)
    config = read_config(folder, what)
    with reading(f"{what} cannot be loaded", _loading_advice(attention)):
        causal_class = "" if brings_code(folder) else _causal_class(config)
        skeleton = Skeleton(
            config.get_text_config(), causal_class, shapes, read_code(config, causal_class)
        )
        require_loadable(config, skeleton, attention)
    if not quantisation(config):  # its weights are packed: names and shapes are the quantiser's
        _require_fitting(misfits(skeleton), what)
    return skeleton


def _causal_class(config: Any) -> str:
    """Return the name of the class that transformers makes a causal language model of.

    Raises:
        ValueError: there is none.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if name is None:
        raise ValueError(f"{type(config).__name__} is of no causal language model")
    return str(name if isinstance(name, str) else name[0])


def _loading_advice(attention: str) -> str:
    return (
        f"it must be a causal language model that transformers loads with `attention: {attention}`;"
        " use another model, or change `spec.model.attention`"
    )


def _require_fitting(wrong: list[str], what: str) -> None:
    if wrong:
        raise UserError(
            f"{what}: {len(wrong)} weights do not fit config.json, the first is {wrong[0]}; copy the"
            " model again, with all its files"
        )


def _load(folder: Path, what: str, *, attention: str, **arguments: Any) -> Any:
    from transformers import AutoModelForCausalLM

    _require_folder(folder, what)
    tensor_shapes(folder, what)  # a damaged file is named
    with reading(f"{what} cannot be loaded", _loading_advice(attention)):
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            attn_implementation=None if attention == "auto" else attention,
            local_files_only=True,
            output_loading_info=True,
            # Told below, with names; the library's own error has none.
            ignore_mismatched_sizes=True,
            trust_remote_code=brings_code(folder),
            **arguments,
        )
    wrong = [f"{name}: missing" for name in sorted(found["missing_keys"])]
    wrong += [f"{name}: {tuple(held)}, by config.json {tuple(wanted)}"
              for name, held, wanted in sorted(found["mismatched_keys"])]  # fmt: skip
    _require_fitting(wrong, what)
    return model
