"""`prepare`: model and data, checked, brought into the cache, before any GPU is asked for."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from finetune_api.adapters import Lora, Method
from finetune_api.contract import DatasetInput, JobFile, PreparedModel, PrepareResult
from finetune_api.data import Data, Overlong
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.resolve import DEFAULT_LENGTH
from finetune_api.status import DataCounts
from finetune_api.training import Training
from finetune_trainer import memory, outputs
from finetune_trainer.adapters import adapter_parameters, check_modules
from finetune_trainer.data.chat import ChatEncoder, Tokens
from finetune_trainer.data.convert import registered_rows
from finetune_trainer.data.saved import save_rows
from finetune_trainer.errors import DataError, UserError
from finetune_trainer.extra_arguments import check_trainer_arguments
from finetune_trainer.files import folder_made_whole, remove_abandoned, write_whole
from finetune_trainer.models import load_skeleton, load_tokenizer, prepare_model
from finetune_trainer.skeleton import Skeleton

COUNTS_FILE = "counts.json"
CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86 AVX-512 and AMX, Arm
DATA_LAYOUT = 2
"""Raised when prepared data must be made anew although its inputs are the same."""


def prepare(file: JobFile) -> PrepareResult:
    """Return where model and data are, what was counted, and what the run will need.

    Raises:
        UserError, DataError: the job cannot work; the message says why.
    """
    outputs.require_usable(file)
    found = inspect(file)
    adopted = outputs.find_same(file, found.model.revision)
    if adopted is None:
        return found
    return found.model_copy(update={"adopted": adopted.artifacts, "adopted_steps": adopted.steps})


def inspect(file: JobFile) -> PrepareResult:
    """Return what `prepare` finds and makes in the cache; no output is touched.

    Raises:
        UserError, DataError: the job cannot work; the message says why.
    """
    spec = file.job
    assert spec is not None, "a prepare step has a job"
    check_trainer_arguments(spec.training or Training())
    model = prepare_model(spec.model, file.folders)
    folder = Path(file.folders.cache) / model.folder
    skeleton = load_skeleton(folder, attention=spec.model.attention)
    if spec.method is Method.LORA:
        check_modules(spec.lora or Lora(), skeleton)
    _check_length(spec.data or Data(), model)
    data_folder, counts = prepare_data(file, spec, model, embeddings=skeleton.embeddings)
    trainable, needed = _estimate(spec, skeleton, model)
    return PrepareResult(
        model=model,
        data_folder=str(data_folder.relative_to(file.folders.cache)),
        data=counts,
        memory_bytes=needed,
        trainable_parameters=trainable,
        cpu_has_bf16=bool(CPU_FLAGS & _cpu_flags()),
    )


def _cpu_flags() -> set[str]:
    """Return what the processor here can do, as the kernel says it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return set(found.split())


def prepare_data(
    file: JobFile, spec: FineTuneJobSpec, model: PreparedModel, *, embeddings: int
) -> tuple[Path, DataCounts]:
    """Tokenise the job's rows once; the folder's name is made from everything they depend on.

    Raises:
        UserError, DataError: rows and model do not go together, or no row is left.
    """
    data, training = spec.data or Data(), spec.training or Training()
    key = _data_key(file, data, training, model)
    target = Path(file.folders.cache) / "data" / key
    if (target / COUNTS_FILE).is_file():
        return target, DataCounts.model_validate_json((target / COUNTS_FILE).read_text())
    remove_abandoned(target.parent, key)
    encoder = ChatEncoder(load_tokenizer(Path(file.folders.cache) / model.folder), data)
    length = data.max_length or min(DEFAULT_LENGTH, model.max_length or DEFAULT_LENGTH)
    collector = _Collector(encoder, data, length)
    rows, eval_rows = _read(file, collector, data, training)
    _check_tokens([*rows, *eval_rows], embeddings)
    counts = DataCounts(
        rows=len(rows),
        eval_rows=len(eval_rows),
        tokens=sum(len(row.input_ids) for row in rows),
        trained_tokens=sum(sum(row.trained[1:]) for row in rows),
        truncated_rows=collector.truncated,
        dropped_rows=collector.dropped,
    )
    with folder_made_whole(target) as folder:
        save_rows(rows, folder / "train")
        if eval_rows:
            save_rows(eval_rows, folder / "eval")
        write_whole(folder / "chat_template.jinja", encoder.template)
        write_whole(folder / COUNTS_FILE, counts.model_dump_json(by_alias=True))
    return target, counts


def _read(
    file: JobFile, collector: "_Collector", data: Data, training: Training
) -> tuple[list[Tokens], list[Tokens]]:
    """Return the rows to train on, and those to evaluate on."""
    rows = [row for dataset in file.datasets for row in collector.read(dataset, file)]
    collector.require(rows, "spec.datasets")
    rows = _sampled(rows, data.max_samples, training.seed)
    if not file.eval_datasets:
        return _split(rows, data.validation_split, training.seed)
    eval_rows = [row for dataset in file.eval_datasets for row in collector.read(dataset, file)]
    collector.require(eval_rows, "spec.evalDatasets")
    return rows, eval_rows


class _Collector:
    """Encodes rows and counts what happens to them."""

    def __init__(self, encoder: ChatEncoder, data: Data, length: int) -> None:
        self._encoder, self._data, self._length = encoder, data, length
        self.truncated = self.dropped = 0

    def read(self, dataset: DatasetInput, file: JobFile) -> list[Tokens]:
        """Return the rows of one registration that can be trained on.

        Raises:
            DataError: a row cannot be rendered, or is too long and may not be.
        """
        rows = []
        for row in registered_rows(dataset, file.folders):
            where = f"DatasetRegistration '{dataset.name}', {row.where}"
            try:
                tokens = self._encoder.encode(row.messages)
            except UserError as error:
                raise UserError(f"{where}: {error}") from error
            if (kept := self._cut(tokens, where)) is not None:
                rows.append(kept)
        return rows

    def _cut(self, row: Tokens, where: str) -> Tokens | None:
        if len(row.input_ids) > self._length:
            if self._data.overlong is Overlong.FAIL:
                raise DataError(
                    f"{where} has {len(row.input_ids)} tokens, `spec.data.maxLength` is"
                    f" {self._length} and `overlong` is fail; raise maxLength or shorten the row"
                )
            if self._data.overlong is Overlong.DROP:
                self.dropped += 1
                return None
            self.truncated += 1
            row = Tokens(row.input_ids[: self._length], row.trained[: self._length])
        if not any(row.trained[1:]):
            self.dropped += 1
            return None
        return row

    def require(self, rows: list[Tokens], path: str) -> None:
        """Refuse data of which nothing is left.

        Raises:
            DataError: every row was dropped; the message says why.
        """
        if not rows:
            raise DataError(
                f"`{path}`: no row is left: all {self.dropped} were dropped, since they are longer"
                f" than `spec.data.maxLength` {self._length} or nothing is left in them to train on;"
                " raise it, or shorten the rows"
            )


def _sampled(rows: list[Tokens], limit: int | None, seed: int) -> list[Tokens]:
    if limit is None or limit >= len(rows):
        return rows
    chosen = np.random.default_rng([seed, 1]).permutation(len(rows))[:limit]
    return [rows[index] for index in sorted(chosen)]


def _split(rows: list[Tokens], share: float | None, seed: int) -> tuple[list[Tokens], list[Tokens]]:
    if share is None:
        return rows, []
    held = round(len(rows) * share)
    if held == 0 or held == len(rows):
        raise DataError(
            f"`spec.data.validationSplit` {share} of {len(rows)} rows leaves {held} for evaluation and"
            f" {len(rows) - held} for training; both must be at least 1; change the share"
        )
    chosen = set(np.random.default_rng([seed, 2]).permutation(len(rows))[:held].tolist())
    return (
        [row for index, row in enumerate(rows) if index not in chosen],
        [rows[index] for index in sorted(chosen)],
    )


def _data_key(file: JobFile, data: Data, training: Training, model: PreparedModel) -> str:
    parts: dict[str, Any] = {
        "layout": DATA_LAYOUT,
        "model": model.revision,
        "data": data.model_dump(mode="json", exclude={"packing"}),
        "seed": training.seed,
        "datasets": [_identity(dataset) for dataset in file.datasets],
        "eval": [_identity(dataset) for dataset in file.eval_datasets],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _identity(dataset: DatasetInput) -> dict[str, Any]:
    kept = {"digest", "format", "columns", "tags"}
    return {**dataset.model_dump(mode="json", include=kept), "limit": dataset.spec.max_samples}


def _check_tokens(rows: list[Tokens], embeddings: int) -> None:
    highest = max(max(row.input_ids) for row in rows)
    if highest >= embeddings:
        raise UserError(
            f"`spec.model.uri`: the tokenizer makes token {highest}, but the model has embeddings for"
            f" {embeddings} tokens only; use the tokenizer that the model was trained with"
        )


def _check_length(data: Data, model: PreparedModel) -> None:
    if data.max_length and model.max_length and data.max_length > model.max_length:
        raise UserError(
            f"`spec.data.maxLength` is {data.max_length}, but the model's positions end at"
            f" {model.max_length}; lower it"
        )


def _estimate(spec: FineTuneJobSpec, skeleton: Skeleton, model: PreparedModel) -> tuple[int, int]:
    """Return the number of trained weights and the bytes one process is expected to need."""
    hidden = getattr(skeleton.config, "hidden_size", None) or 1024
    layers = getattr(skeleton.config, "num_hidden_layers", None) or 24
    full = spec.method is Method.FULL
    trainable = model.parameters if full else adapter_parameters(spec.lora or Lora(), skeleton)
    needed = memory.memory_bytes(
        parameters=model.parameters, trainable=trainable, method=spec.method, half=False,
        activation_tokens=layers * 2048, width=hidden,
    )  # fmt: skip
    return trainable, needed
