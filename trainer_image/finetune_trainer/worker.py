"""One process of a step: runs it and leaves its outcome for the supervisor."""

import os
import sys
import traceback
import warnings
from pathlib import Path

from finetune_api.contract import ErrorReport, ExitCode, JobFile, Termination, ValidateResult
from finetune_trainer import signals
from finetune_trainer.errors import Infrastructure, StepError, classify
from finetune_trainer.files import write_whole
from finetune_trainer.rewrite import keep_torch_out

OUTCOME_FILE = "outcome-rank{rank}.json"


def run_worker(file: JobFile) -> int:
    """Run this process's part of a step; return its exit code."""
    import faulthandler
    import signal

    faulthandler.register(signal.SIGUSR1, all_threads=True)
    warnings.filterwarnings("ignore", category=FutureWarning)
    signals.install(file)
    rank = int(os.environ.get("RANK", "0"))
    try:
        outcome = _run_step(file)
    except (
        Exception,
        KeyboardInterrupt,
    ) as error:  # the one place where every failure gets its class
        outcome = _outcome_of(error, rank)
    if outcome is None:
        return ExitCode.DONE
    path = Path(file.folders.step) / OUTCOME_FILE.format(rank=rank)
    write_whole(path, outcome.model_dump_json(by_alias=True, exclude_none=True))
    return outcome.exit_code


def _run_step(file: JobFile) -> Termination | None:
    match file.step:
        case "validate":
            keep_torch_out(file)
            from finetune_trainer.validate import validate

            return Termination(exit_code=0, validated=validate(file))
        case "prepare":
            keep_torch_out(file)
            from finetune_trainer.prepare import prepare

            return Termination(exit_code=0, prepared=prepare(file))
        case "train":
            from finetune_trainer.train import close_distributed, train

            _require_prepared(file)
            result = train(file)
            close_distributed()
            return Termination(exit_code=0, trained=result) if result else None
        case "export":
            from finetune_trainer.export import export

            return Termination(exit_code=0, exported=export(file))
        case _:
            raise ValueError(f"{file.step} is interactive; it has no worker")


def _require_prepared(file: JobFile) -> None:
    assert file.prepared is not None, "a train step is prepared"
    for folder in (file.prepared.model.folder, file.prepared.data_folder):
        if not (Path(file.folders.cache) / folder).is_dir():
            raise Infrastructure(
                f"what was prepared is gone from the cache ({folder}); something else cleaned it; raise"
                " `spec.rerun` to prepare it again"
            )


def _outcome_of(error: BaseException, rank: int) -> Termination:
    from finetune_trainer.validate import InvalidRows

    known = classify(error)
    if known is not error:
        traceback.print_exception(error)  # for the log: a library's message alone tells too little
    if known is None:
        message = f"{type(error).__name__}: {error}; this is a defect: report it with the log"
    else:
        message = str(known)
        print(message, file=sys.stderr, flush=True)
    code = known.exit_code if isinstance(known, StepError) else ExitCode.BUG
    outcome = Termination(exit_code=code, error=ErrorReport(message=message[:4096], rank=rank))
    if isinstance(error, InvalidRows):
        found = ValidateResult(
            format="", purpose="", rows=0, invalid_rows=error.invalid, errors=error.errors,
            size_bytes=0, digest="",
        )  # fmt: skip
        outcome = outcome.model_copy(update={"validated": found})
    return outcome
