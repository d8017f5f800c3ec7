"""Faults for the trainer, run in its process before its own first line (`FINETUNE_TEST_HOOK`).

`FINETUNE_TEST_FAULT` is `KIND:ARGUMENT`; it hits the first attempt at training, or every one for
kinds that count attempts themselves. Nothing of this is in the product.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _at_step_end(step: int | None, action: Any) -> None:
    from finetune_trainer.callbacks import RunCallback

    original = RunCallback.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        original(self, args, state, control, **more)
        if step in (None, state.global_step):
            action()

    RunCallback.on_step_end = on_step_end


def _in_step(step: int, action: Any) -> None:
    from finetune_trainer.plan_trainer import PlanTrainer

    original = PlanTrainer.compute_loss

    def compute_loss(self: Any, *arguments: Any, **more: Any) -> Any:
        if self.state.global_step == step:
            action()
        return original(self, *arguments, **more)

    PlanTrainer.compute_loss = compute_loss


def _after_save(step: int, action: Any) -> None:
    from finetune_trainer.callbacks import RunCallback

    original = RunCallback.on_save

    def on_save(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        original(self, args, state, control, **more)
        if state.global_step == step:
            action(Path(args.output_dir) / f"checkpoint-{step}")

    RunCallback.on_save = on_save


def _die_at_boundary(part: str, number: int, counter: Path) -> None:
    """Die before the given write below a path that contains `part`: every file is a boundary."""
    import safetensors.torch
    import torch

    seen = 0

    def boundary(path: object) -> None:
        nonlocal seen
        if part in str(path):
            seen += 1
            counter.write_text(str(seen))
            if seen == number:
                _die()

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        is_write = (
            event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        )
        if (is_write and part in str(arguments[0])) or (
            event in ("os.rename", "os.remove") and part in str(arguments[0])
        ):
            boundary(arguments[0])

    sys.addaudithook(audit)
    for module, name in ((torch, "save"), (safetensors.torch, "save_file")):
        original = getattr(module, name)

        def wrapped(
            content: Any, path: Any, *more: Any, _original: Any = original, **named: Any
        ) -> Any:
            boundary(path)  # the library writes without Python's knowledge
            result = _original(content, path, *more, **named)
            boundary(path)
            return result

        setattr(module, name, wrapped)
    import peft.peft_model

    peft.peft_model.safe_save_file = safetensors.torch.save_file


def _truncate_and_die(folder: Path) -> None:
    for name in ("optimizer.pt", "adapter_model.safetensors"):
        with (folder / name).open("r+b") as file:
            file.truncate((folder / name).stat().st_size // 2)
    _die()


def _fill_disk(folder: Path) -> None:
    with (folder / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 65536)
        except OSError:
            pass


def _make_full(folder: Path) -> None:
    """Let the kernel say that the device is full, for one file of the next checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "optimizer.pt").symlink_to("/dev/full")


def install(kind: str, argument: str, job: dict[str, Any]) -> None:
    """Arm one fault."""
    attempt, work = job["attempt"], Path(job["folders"]["work"])
    folder = work / f"run-{job['run']}" / f"attempt-{attempt}-{job['uid'][:8]}"
    if kind == "slow":
        _at_step_end(None, lambda: time.sleep(float(argument)))
    elif kind in ("die-in-save", "die-in-publish"):
        part = "/checkpoint-2" if kind == "die-in-save" else "/run-1"
        _die_at_boundary(part, attempt, Path(job["folders"]["step"]) / "boundaries")
    elif attempt > 1:
        (work / "ballast").unlink(missing_ok=True)
    else:
        _install_once(kind, int(argument), work, folder)


def _install_once(kind: str, step: int, work: Path, folder: Path) -> None:
    match kind:
        case "kill":
            _at_step_end(step, _die)
        case "hang":
            _in_step(step, lambda: time.sleep(3600))
        case "term":
            _in_step(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        case "kill-after-save":
            _after_save(step, lambda _: _die())
        case "truncate":
            _after_save(step, _truncate_and_die)
        case "fill-disk":
            _at_step_end(step, lambda: _fill_disk(work))
        case "full-file":
            _at_step_end(step, lambda: _make_full(folder / f"checkpoint-{step}"))
        case _:
            raise ValueError(kind)


def _main() -> None:
    if "worker" not in sys.argv:
        return
    job = json.loads(Path(sys.argv[sys.argv.index("--job-file") + 1]).read_text())
    if job["step"] == "train":
        kind, _, argument = os.environ["FINETUNE_TEST_FAULT"].partition(":")
        install(kind, argument, job)


_main()
