"""Adapters: made from the spec, checked against the model, loaded and merged."""

import warnings
from pathlib import Path
from typing import Any

from finetune_api.adapters import Lora
from finetune_api.status import Resolved
from finetune_trainer import memory
from finetune_trainer.errors import UserError, reading
from finetune_trainer.skeleton import Skeleton, matches

ALL_LINEAR = "all-linear"
DEFAULT_RANK = 16
ADAPTER_FILE = "adapter_model.safetensors"
GIVE_ITS_BASE = "give the base model it was trained on"


def lora_config(lora: Lora, resolved: Resolved) -> Any:
    """Return PEFT's configuration; alpha is always given (PEFT's own default is 8)."""
    from peft import LoraConfig

    targets = lora.target_modules or [ALL_LINEAR]
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=resolved.lora_rank,
        lora_alpha=resolved.lora_alpha,
        lora_dropout=lora.dropout,
        target_modules=ALL_LINEAR if targets == [ALL_LINEAR] else targets,
        use_rslora=lora.rs_lora,
        use_dora=lora.dora,
        modules_to_save=lora.modules_to_save,
    )


def adapter_parameters(lora: Lora, model: Skeleton) -> int:
    """Return the number of weights that an adapter, and the modules saved with it, train."""
    targets = lora.target_modules or [ALL_LINEAR]
    shapes = model.adapted_shapes(None if targets == [ALL_LINEAR] else targets)
    magnitudes = sum(outputs for outputs, _ in shapes) if lora.dora else 0
    adapters = memory.lora_parameters(shapes, lora.rank or DEFAULT_RANK)
    return adapters + magnitudes + model.parameters_of(lora.modules_to_save or [])


def check_modules(lora: Lora, model: Skeleton) -> None:
    """Refuse module names that a model does not have, or that cannot be adapted.

    Raises:
        UserError: a name matches nothing of use; the message lists what there is.
    """
    modules = model.modules
    known = sorted({path.rsplit(".", 1)[-1] for path, m in modules.items() if m.adaptable})
    for field, wanted in (
        ("targetModules", lora.target_modules),
        ("modulesToSave", lora.modules_to_save),
    ):
        for name in wanted or []:
            if name == ALL_LINEAR and field == "targetModules":
                continue
            found = [module for path, module in modules.items() if matches(path, [name])]
            wrong = next((module for module in found if not module.adaptable), None)
            if found and (field == "modulesToSave" or wrong is None):
                continue
            kind = wrong.kind if wrong and wrong.kind else "layer that takes no adapter"
            state = f"is a {kind}" if found else "is no module of this model"
            raise UserError(
                f"`spec.lora.{field}` {name!r} {state}; it must be one of {', '.join(known)};"
                " correct or remove it"
            )


def merge(model: Any, folders: list[Path]) -> Any:
    """Merge adapters one after the other into a model.

    Raises:
        UserError: an adapter does not belong to this model, or holds no numbers.
    """
    from peft import PeftModel

    for folder in folders:
        adapted = load(model, folder, PeftModel)
        try:
            model = adapted.merge_and_unload(safe_merge=True)
        except ValueError as error:  # the check of `safe_merge`
            raise UserError(
                f"the adapter in {folder} holds values that are no numbers (NaN): its training"
                " diverged; train it again with a lower `spec.training.learningRate`"
            ) from error
    return model


def load(model: Any, folder: Path, peft_class: Any) -> Any:
    """Put an adapter beside a model's weights.

    Raises:
        UserError: it does not belong to this model, or is damaged.
    """
    for name in ("adapter_config.json", ADAPTER_FILE):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} holds no {name}; it must be a PEFT adapter in safetensors; correct the"
                " location"
            )
    what = f"the adapter in {folder} does not fit this base model, or is damaged"
    with reading(what, GIVE_ITS_BASE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # told below
        adapted = peft_class.from_pretrained(model, folder)
    saved, wanted = _saved_names(folder), _wanted_names(adapted)
    strangers = (wanted - saved) | {name for name in saved - wanted if ".lora_" in name}
    if strangers:
        raise UserError(
            f"the adapter in {folder} does not fit this base model: {len(strangers)} weights are in"
            f" only one of them, e.g. {min(strangers)}; {GIVE_ITS_BASE}"
        )
    return adapted


def _saved_names(folder: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(folder / ADAPTER_FILE, framework="numpy") as tensors:
        return set(tensors.keys())


def _wanted_names(adapted: Any) -> set[str]:
    from peft import get_peft_model_state_dict

    # To look for changed embeddings it would ask the hub for the base model.
    return set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
