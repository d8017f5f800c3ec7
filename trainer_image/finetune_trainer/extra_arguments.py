"""`training.extraArguments`: what only the libraries can judge, judged before a GPU is asked for."""

import json
from typing import Any, get_args

from finetune_api.optimizers import Optimizer
from finetune_api.training import Training
from finetune_trainer.errors import UserError, reading
from finetune_trainer.rewrite import require_torch

JUDGED_BY_DEVICE = ("tf32",)
"""Arguments whose value only the machine that trains can judge."""
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def check_trainer_arguments(training: Training) -> None:
    """Check `extraArguments` against the trainer's own configuration class.

    Raises:
        UserError: it has no such argument, a library refuses the value, or PyTorch is not here.
    """
    given = training.extra_arguments or {}
    if not given:
        return
    require_torch("`spec.training.extraArguments`: checking them needs torch", "prepare this job")
    import dataclasses
    import difflib

    from trl import SFTConfig

    known = {field.name: field.type for field in dataclasses.fields(SFTConfig)}
    for name, value in given.items():
        path = f"`spec.training.extraArguments.{name}`"
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "remove it"
            raise UserError(f"{path} is no argument of the trainer (TRL's SFTConfig); {hint}")
        kinds = get_args(known[name]) or (known[name],)
        if not _is_one_of(value, kinds):
            wanted = " or ".join(WORDS[kind] for kind in WORDS if kind in kinds) or "left out"
            raise UserError(f"{path} is {json.dumps(value)}; it must be {wanted}; correct it")
        _try_arguments({name: value}, training, path)
    _try_arguments(given, training, "`spec.training.extraArguments`")


def _is_one_of(value: object, kinds: tuple[Any, ...]) -> bool:
    """Tell whether a value is of one of the types; a whole number is a float too, true is not."""
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, int):
        return int in kinds or float in kinds
    return any(isinstance(kind, type) and isinstance(value, kind) for kind in kinds)


def _try_arguments(given: dict[str, Any], training: Training, path: str) -> None:
    """Build what the arguments configure, around one weight: the libraries judge the values."""
    import torch
    from transformers import Trainer, get_scheduler
    from trl import SFTConfig

    judged = {name: value for name, value in given.items() if name not in JUDGED_BY_DEVICE}
    optimizer = training.optimizer or Optimizer.ADAMW_TORCH_FUSED
    with reading(f"{path}: the trainer refuses {json.dumps(given)}", "correct or remove it"):
        arguments = SFTConfig(
            output_dir="unused", use_cpu=True, bf16=False, report_to="none", max_steps=1,
            activation_checkpointing=False, optim=str(optimizer),
            lr_scheduler_type=str(training.scheduler), **judged,
        )  # fmt: skip
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
        built = kind([torch.nn.Parameter(torch.zeros(1))], **settings)
        get_scheduler(
            arguments.lr_scheduler_type, built, num_warmup_steps=0, num_training_steps=1,
            scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
        )  # fmt: skip
        arguments.get_process_log_level()
        if arguments.torch_compile:
            backend, mode = arguments.torch_compile_backend, arguments.torch_compile_mode
            torch.compile(torch.nn.Identity(), backend=backend, mode=mode)
        torch.utils.data.DataLoader([0], num_workers=arguments.dataloader_num_workers)
