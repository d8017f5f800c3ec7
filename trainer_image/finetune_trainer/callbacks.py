"""What happens between the Trainer's steps: progress, checkpoints that count, stopping, faults."""

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from finetune_api.contract import TRAINER_LOG_FILE, JobFile
from finetune_api.status import CheckpointState
from finetune_trainer import checkpoints, signals
from finetune_trainer.errors import UserError
from finetune_trainer.progress import ProgressReporter, duration, utc_now


class RunCallback(TrainerCallback):
    """Reports, saves and stops; all ranks decide the same."""

    def __init__(self, file: JobFile, reporter: ProgressReporter, *, is_first_rank: bool) -> None:
        """Write logs and manifests on the first rank only."""
        self._file, self._reporter, self._first = file, reporter, is_first_rank
        self._log = checkpoints.attempt_folder(file) / TRAINER_LOG_FILE
        self._last_save = time.monotonic()
        self._trainer: Any = None
        self.stopped_by_signal = False
        self.stopped_early = False

    def attach(self, trainer: Any) -> None:
        """Take the trainer whose token counts are reported."""
        self._trainer = trainer
        trainer.on_evaluation_step = self._on_evaluation_step

    def _on_evaluation_step(self) -> None:
        signals.beat()
        self._tell("Evaluating")

    def _tell(self, activity: str) -> None:
        """Report a change of what is being done."""
        if self._first and self._reporter.activity != activity:
            self._reporter.activity = activity
            self._reporter.report(now=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Beat; stop together when one rank was told to; save by the clock."""
        signals.beat()
        stop, save = self._agreed(signals.stop_requested(self._file), self._save_is_due())
        if stop and state.global_step < state.max_steps:
            self.stopped_by_signal = True
            control.should_save = control.should_training_stop = True
        if save:
            control.should_save = True
        self._reporter.step, self._reporter.epoch = state.global_step, state.epoch or 0.0
        self._reporter.tokens = self._trainer.tokens
        self._reporter.activity = "Training"
        if self._first:
            self._reporter.report(now=state.global_step == self._reporter.step == state.max_steps)

    def _save_is_due(self) -> bool:
        job = self._file.job
        minutes = job.checkpoint.every_minutes if job and job.checkpoint else None
        return minutes is not None and time.monotonic() - self._last_save >= 60 * minutes

    def _agreed(self, *flags: bool) -> tuple[bool, ...]:
        """Return each flag, true if any rank raised it."""
        if not torch.distributed.is_initialized():
            return flags
        values = torch.tensor([float(flag) for flag in flags], device=self._trainer.args.device)
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX)
        return tuple(bool(value) for value in values)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Write LLaMA-Factory's line and ours; a loss that is no number ends the run."""
        for key in ("loss", "eval_loss"):
            if key in logs and not math.isfinite(logs[key]):
                raise UserError(
                    f"{key} is {logs[key]} at step {state.global_step}: training diverged; lower"
                    " `spec.training.learningRate`, or raise `warmupRatio`"
                )
        if not self._first or not ({"loss", "eval_loss"} & logs.keys()):
            return
        self._reporter.record(logs, state.global_step)
        line = self._line(logs, state)
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(_printed(line), flush=True)

    def _line(self, logs: dict[str, float], state: Any) -> dict[str, Any]:
        progress = self._reporter.snapshot().progress
        line: dict[str, Any] = {
            "current_steps": state.global_step,
            "total_steps": state.max_steps,
            "epoch": round(state.epoch or 0.0, 4),
            "percentage": round(100 * state.global_step / state.max_steps, 2),
            "elapsed_time": duration(self._reporter.elapsed_seconds),
            "remaining_time": progress.eta,
        }
        names = {
            "loss": "loss",
            "eval_loss": "eval_loss",
            "learning_rate": "lr",
            "grad_norm": "grad_norm",
        }
        line |= {ours: logs[theirs] for theirs, ours in names.items() if theirs in logs}
        if "loss" in logs:
            line["tokens_per_second"] = int(progress.tokens_per_second or 0)
        return line

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any
    ) -> None:
        """Keep the best; stop when it no longer gets better."""
        stopping = (
            self._file.job and self._file.job.training and self._file.job.training.early_stopping
        )
        if not stopping:
            return
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        best = losses.index(min(losses))
        if best == len(losses) - 1:
            control.should_save = True
        elif len(losses) - 1 - best >= stopping.patience:
            self.stopped_early = True
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Make the checkpoint count, then let old ones go."""
        self._last_save = time.monotonic()
        signals.beat()
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if not self._first:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self._log.exists():
            shutil.copyfile(self._log, folder / TRAINER_LOG_FILE)
        checkpoints.seal(folder, step=state.global_step, world_size=args.world_size)
        uri = f"{folder.parent.name}/{folder.name}"
        saved = CheckpointState(step=state.global_step, uri=uri, time=utc_now())
        self._reporter.checkpoints["latest"] = saved
        best = best_step(state.log_history)
        if best == state.global_step:
            self._reporter.checkpoints["best"] = saved
        job = self._file.job
        keep = job.checkpoint.keep_last if job and job.checkpoint else 2
        checkpoints.prune(self._file, keep_last=keep, best_step=best)
        self._reporter.report(now=True)


def best_step(history: list[dict[str, Any]]) -> int | None:
    """Return the step with the lowest evaluation loss, if there was an evaluation."""
    evaluated = [entry for entry in history if "eval_loss" in entry]
    return min(evaluated, key=lambda entry: entry["eval_loss"])["step"] if evaluated else None


def _printed(line: dict[str, Any]) -> str:
    where = f"Step {line['current_steps']}/{line['total_steps']}"
    if "eval_loss" in line:
        return f"{where}  eval loss {line['eval_loss']:.4f}"
    eta = f"  eta {line['remaining_time']}" if line["remaining_time"] else ""
    return f"{where}  loss {line['loss']:.4f}  lr {line['lr']:.2e}  {line['tokens_per_second']} tokens/s{eta}"
