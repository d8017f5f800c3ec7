"""Adapters: made from the spec, checked against the model, loaded and merged."""

from pathlib import Path
from typing import Any

from finetune_api.adapters import Lora
from finetune_api.status import Resolved
from finetune_trainer.errors import UserError

ALL_LINEAR = "all-linear"


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


def check_modules(lora: Lora, folder: Path) -> None:
    """Refuse module names that the model does not have; reads names only, no weights.

    Raises:
        UserError: a name matches nothing; the message lists what there is.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    names = [name for name, _ in model.named_modules()]
    linear = sorted(
        {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    )
    for field, wanted in (
        ("targetModules", lora.target_modules),
        ("modulesToSave", lora.modules_to_save),
    ):
        for name in wanted or []:
            if name != ALL_LINEAR and not any(n == name or n.endswith(f".{name}") for n in names):
                raise UserError(
                    f"`spec.lora.{field}` {name!r} is no module of this model; it must be one of"
                    f" {', '.join(linear)}"
                )


def merge(model: Any, folders: list[Path]) -> Any:
    """Merge adapters one after the other into a model.

    Raises:
        UserError: an adapter does not belong to this model.
    """
    from peft import PeftModel

    for folder in folders:
        model = load(model, folder, PeftModel).merge_and_unload(safe_merge=True)
    return model


def load(model: Any, folder: Path, peft_class: Any) -> Any:
    """Put an adapter beside a model's weights.

    Raises:
        UserError: it does not belong to this model.
    """
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder.name} holds no adapter_config.json; it must be a PEFT adapter")
    try:
        return peft_class.from_pretrained(model, folder)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"the adapter in {folder.name} does not fit this base model: {str(error).splitlines()[0]}"
        ) from error
