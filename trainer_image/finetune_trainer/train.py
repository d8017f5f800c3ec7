"""`train`: a whole run, readable from top to bottom."""

import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerState
from trl import SFTConfig

from finetune_api.adapters import Lora, Method
from finetune_api.contract import TRAINER_LOG_FILE, JobFile, TrainResult
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.resolve import divided
from finetune_api.status import Resolved
from finetune_api.training import Training
from finetune_trainer import checkpoints, outputs, publish, signals
from finetune_trainer.adapters import lora_config
from finetune_trainer.attention import use_packed_attention
from finetune_trainer.batch_plan import BatchPlan
from finetune_trainer.callbacks import RunCallback, best_step
from finetune_trainer.data.saved import IGNORED, ROWS_FILE
from finetune_trainer.errors import Evicted, UserError
from finetune_trainer.fast.apply import speed_up
from finetune_trainer.heap import keep_freed_memory
from finetune_trainer.models import load_model, load_tokenizer
from finetune_trainer.plan_trainer import PlanTrainer
from finetune_trainer.progress import ProgressReporter
from finetune_trainer.sources import claim_path


@dataclass(frozen=True)
class Run:
    """A job, its decided values, and where its model and data are."""

    file: JobFile
    spec: FineTuneJobSpec
    resolved: Resolved
    model_folder: Path
    data_folder: Path


def train(file: JobFile) -> TrainResult | None:
    """Train, publish the result, and return what was done; None on all ranks but the first.

    Raises:
        Evicted: told to stop; a checkpoint was saved. UserError: training diverged.
    """
    if (done := outputs.published(file)) is not None:
        _tell_of(file, done.steps)
        return TrainResult(steps=done.steps, total_steps=done.steps, artifacts=done.artifacts)
    run = run_of(file)
    resume = checkpoints.newest_complete(file)
    _stop_if_told(file)
    first_rank = int(os.environ.get("RANK", "0")) == 0
    reporter = ProgressReporter(
        file, total_steps=run.resolved.total_steps, first_step=resume.step if resume else 0
    )
    if first_rank:
        reporter.report(now=True)
    trainer = build_trainer(run)
    callback = RunCallback(file, reporter, is_first_rank=first_rank)
    callback.attach(trainer)
    trainer.add_callback(callback)
    _start_folder(file, resume, reporter, first_rank=first_rank)
    _stop_if_told(file)
    if resume is not None and resume.step >= run.resolved.total_steps:
        # Every step is done: the Trainer would still make one more before it looked.
        trainer.state = TrainerState.load_from_json(str(resume.folder / "trainer_state.json"))
        return _finish(run, trainer, callback, reporter, resume.folder) if first_rank else None
    trainer.train(resume_from_checkpoint=str(resume.folder) if resume else None)
    if callback.stopped_by_signal and trainer.state.global_step < run.resolved.total_steps:
        raise Evicted(
            f"told to stop; saved at step {trainer.state.global_step} of {run.resolved.total_steps}"
        )
    return _finish(run, trainer, callback, reporter) if first_rank else None


def _tell_of(file: JobFile, steps: int) -> None:
    """Report a run that an earlier attempt published before anybody heard of its end."""
    reporter = ProgressReporter(file, total_steps=steps, first_step=steps)
    _record(claim_path(file.output, file.folders) / TRAINER_LOG_FILE, reporter)
    reporter.report(now=True)


def run_of(file: JobFile) -> Run:
    """Return the run that a job file describes."""
    assert file.job is not None, "a train step has a job"
    assert file.resolved is not None, "the operator has resolved it"
    assert file.prepared is not None, "prepare came first"
    cache = Path(file.folders.cache)
    return Run(
        file=file,
        spec=file.job,
        resolved=divided(file.resolved, file.micro_batch_divisor),
        model_folder=cache / file.prepared.model.folder,
        data_folder=cache / file.prepared.data_folder,
    )


def build_trainer(run: Run) -> PlanTrainer:
    """Load model, tokenizer and rows, and return the trainer of a run."""
    rows, eval_rows = rows_of(run, "train"), rows_of(run, "eval")
    tokenizer = load_tokenizer(run.model_folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    is_lora = run.spec.method is Method.LORA
    dtype = "bfloat16" if run.resolved.precision == "bf16" and is_lora else "float32"
    if run.resolved.device == "cpu":
        keep_freed_memory()
    model = load_model(run.model_folder, dtype=dtype, attention=run.spec.model.attention)
    _choose_attention(run, model)
    signals.beat()
    trainer = PlanTrainer(
        model=model,
        args=_arguments(run),
        processing_class=tokenizer,
        train_dataset=rows,
        eval_dataset=eval_rows,
        plan=plan_of(run, rows, shuffled=True),
        eval_plan=plan_of(run, eval_rows, shuffled=False) if eval_rows is not None else None,
        peft_config=lora_config(run.spec.lora or Lora(), run.resolved) if is_lora else None,
    )
    trainer.remove_callback(PrinterCallback)  # our own line says the same, readably
    if is_lora and (fast := speed_up(trainer.model, run.resolved)) is not None:
        trainer.scores = fast.scores
    return trainer


def _choose_attention(run: Run, model: Any) -> None:
    """On the CPU a mask over a whole pack costs more than the rows; GPUs have kernels for it."""
    if run.resolved.packing == "packed" and run.resolved.device == "cpu":
        kind = "row by row" if use_packed_attention(model) else "masked (this model's own kind)"
        print(f"Attention over packed rows: {kind}", flush=True)


def _stop_if_told(file: JobFile) -> None:
    if signals.stop_requested(file):
        raise Evicted("told to stop before the first step; nothing was lost")


def rows_of(run: Run, name: str) -> Dataset | None:
    """Return the prepared rows, `train` or `eval`."""
    path = run.data_folder / name / ROWS_FILE
    if not path.parent.is_dir():
        return None
    path.stat()  # Arrow's error about a file that is gone does not name it
    return Dataset.from_file(str(path))


def plan_of(run: Run, rows: Dataset, *, shuffled: bool) -> BatchPlan:
    """Plan the steps of a run over rows as they were saved."""
    chunks = rows.data.column("labels").chunks
    lengths, trained = np.concatenate([_token_counts(chunk) for chunk in chunks], axis=1)
    resolved = run.resolved
    return BatchPlan(
        lengths=lengths,
        trained=trained,
        batch=resolved.global_batch_size,
        world=resolved.world_size,
        tokens_cap=resolved.tokens_per_micro_batch or resolved.max_length,
        rows_cap=resolved.per_device_batch_size,
        packed=resolved.packing == "packed",
        seed=(run.spec.training or Training()).seed,
        shuffled=shuffled,
    )


def _token_counts(labels: Any) -> npt.NDArray[np.int64]:
    """Return lengths and trained tokens, [2, N], of an Arrow list array; a million rows take a second.

    A row's first token predicts nothing from before it, so it has no loss.
    """
    lengths = labels.value_lengths().to_numpy().astype(np.int64)
    has_loss = labels.flatten().to_numpy() != IGNORED
    starts = np.cumsum(lengths) - lengths
    trained = np.add.reduceat(has_loss, starts, dtype=np.int64) - has_loss[starts]
    return np.stack([lengths, trained])


def _arguments(run: Run) -> SFTConfig:
    """Return the trainer's own configuration; every value is decided, none is a library's default."""
    training, resolved = run.spec.training or Training(), run.resolved
    total = resolved.total_steps
    try:
        return SFTConfig(
            output_dir=str(checkpoints.attempt_folder(run.file)),
            max_steps=total,
            per_device_train_batch_size=1,
            per_device_eval_batch_size=1,
            gradient_accumulation_steps=1,
            learning_rate=float(resolved.learning_rate),
            lr_scheduler_type=str(training.scheduler),
            warmup_steps=math.ceil(training.warmup_ratio * total),
            optim=resolved.optimizer,
            bf16=resolved.precision == "bf16",
            fp16=resolved.precision == "fp16",
            use_cpu=resolved.device == "cpu",
            max_grad_norm=training.max_grad_norm,
            weight_decay=training.weight_decay,
            seed=training.seed,
            data_seed=training.seed,
            logging_steps=training.logging_steps,
            logging_nan_inf_filter=False,
            eval_strategy="steps" if resolved.eval_steps else "no",
            eval_steps=resolved.eval_steps,
            save_strategy="steps" if resolved.checkpoint_steps else "no",
            save_steps=resolved.checkpoint_steps or total,
            activation_checkpointing=resolved.activation_checkpointing,
            average_tokens_across_devices=True,
            ddp_find_unused_parameters=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            packing=False,
            padding_free=False,
            dataloader_pin_memory=resolved.device == "cuda",
            report_to="none",
            disable_tqdm=True,
            **(training.extra_arguments or {}),
        )
    except (TypeError, ValueError) as error:
        names = ", ".join(training.extra_arguments or {}) or "none"
        raise UserError(
            f"`spec.training`: the trainer refuses its configuration: {error} (extraArguments: {names})"
        ) from error


def _start_folder(
    file: JobFile,
    resume: checkpoints.SavedCheckpoint | None,
    reporter: ProgressReporter,
    *,
    first_rank: bool,
) -> None:
    """Make this attempt's folder; the log goes on where the checkpoint left it."""
    if not first_rank:
        return
    checkpoints.remove_incomplete(file)
    folder = checkpoints.attempt_folder(file)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / TRAINER_LOG_FILE
    log.unlink(missing_ok=True)
    if resume and (resume.folder / TRAINER_LOG_FILE).is_file():
        shutil.copyfile(resume.folder / TRAINER_LOG_FILE, log)
        _record(log, reporter)
    start = f"Resuming from step {resume.step}" if resume else "Starting"
    print(f"{start} of {reporter.snapshot().progress.total_steps} steps", flush=True)
    reporter.report(now=True)


def _record(log: Path, reporter: ProgressReporter) -> None:
    """Let a report hold what an earlier attempt logged."""
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        entry = json.loads(line)
        reporter.record(entry, entry["current_steps"])


def _finish(
    run: Run,
    trainer: PlanTrainer,
    callback: RunCallback,
    reporter: ProgressReporter,
    saved: Path | None = None,
) -> TrainResult:
    """Publish the last weights (`saved`, if not the trainer's), or the best after early stopping."""
    signals.beat()
    reporter.activity = "Publishing"
    reporter.report(now=True)
    best = saved
    early = (run.spec.training or Training()).early_stopping
    if early and (step := best_step(trainer.state.log_history)) is not None:
        found = list(checkpoints.run_folder(run.file).glob(f"attempt-*/checkpoint-{step}"))
        best = found[-1] if found else saved
    manifest = publish.publish_run(run.file, trainer, steps=trainer.state.global_step, best=best)
    reporter.report(now=True)
    return TrainResult(
        steps=trainer.state.global_step,
        total_steps=run.resolved.total_steps,
        stopped_early=callback.stopped_early,
        artifacts=manifest.artifacts,
    )


def close_distributed() -> None:
    """Leave the process group together; an abrupt end can turn a finished run into a crash."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
