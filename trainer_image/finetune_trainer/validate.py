"""`validate`: reads every row of a registration and says what is wrong with which."""

import itertools
import json
from pathlib import Path

from finetune_api.contract import JobFile, ValidateResult
from finetune_api.datasetregistration import (
    DatasetFormat,
    DatasetRegistrationSpec,
    RowError,
    TokenStatistics,
    ValidationMode,
)
from finetune_trainer import sources
from finetune_trainer.data.convert import conversations, find_format, open_source
from finetune_trainer.data.formats.layout import Message
from finetune_trainer.errors import DataError

SAMPLE_ROWS = 10_000
REPORTED_ERRORS = 10
PREVIEW_CHARACTERS = 300


def validate(file: JobFile) -> ValidateResult:
    """Return what a registration holds.

    Raises:
        DataError: more rows are invalid than allowed; the message names the first.
    """
    assert file.registration is not None, "a validate step has a registration"
    spec = file.registration.spec
    source = open_source(spec.source, file.folders, name=file.name)
    format_, layout = find_format(source, spec)
    statistics = _TokenCounter(spec, file) if spec.tokenizer else None
    errors: list[RowError] = []
    preview: list[str] = []
    rows = invalid = 0
    for row in conversations(source, format_, layout, limit=_row_limit(spec)):
        if row.fault is not None:
            invalid += 1
            if len(errors) < REPORTED_ERRORS:
                message = str(row.fault)[:200]
                errors.append(
                    RowError(row=row.number, field=row.fault.field[:256], message=message)
                )
            continue
        rows += 1
        if statistics:
            statistics.add(row.messages)
        if len(preview) < spec.preview_rows:
            preview.append(json.dumps(row.messages, ensure_ascii=False)[:PREVIEW_CHARACTERS])
    _require_enough(rows, invalid, spec, errors)
    return ValidateResult(
        format=format_,
        purpose="conversation",
        rows=rows,
        invalid_rows=invalid,
        errors=errors,
        columns=layout.columns,
        tags=layout.tags if format_ is not DatasetFormat.ALPACA else None,
        size_bytes=source.size_bytes,
        digest=source.digest,
        tokens=statistics.result() if statistics else None,
        preview=preview,
    )


class InvalidRows(DataError):
    """Too many rows are invalid; carries the first of them for the status."""

    def __init__(self, message: str, errors: list[RowError], invalid: int) -> None:
        """Keep the reported rows."""
        self.errors = errors
        self.invalid = invalid
        super().__init__(message)


def _row_limit(spec: DatasetRegistrationSpec) -> int | None:
    sampled = spec.validation is not None and spec.validation.mode is ValidationMode.SAMPLE
    limits = [limit for limit in (spec.max_samples, SAMPLE_ROWS if sampled else None) if limit]
    return min(limits, default=None)


def _require_enough(
    rows: int, invalid: int, spec: DatasetRegistrationSpec, errors: list[RowError]
) -> None:
    if invalid > spec.max_invalid_rows:
        first = errors[0]
        raise InvalidRows(
            f"{invalid} of {rows + invalid} rows are invalid, `spec.maxInvalidRows` is"
            f" {spec.max_invalid_rows}; the first is row {first.row}: {first.message}",
            errors,
            invalid,
        )
    if rows == 0:
        raise DataError("there is no row; a dataset must hold at least one")


class _TokenCounter:
    """Counts tokens of the texts of a row, without a chat template."""

    def __init__(self, spec: DatasetRegistrationSpec, file: JobFile) -> None:
        from finetune_trainer.models import load_tokenizer

        assert spec.tokenizer is not None
        path = sources.fetch(
            spec.tokenizer,
            file.folders,
            what="`spec.tokenizer`",
            patterns=["*.json", "*.model", "*.txt"],
        )
        self._tokenizer = load_tokenizer(path if path.is_dir() else Path(path))
        self._counts: list[int] = []

    def add(self, messages: list[Message]) -> None:
        """Count one row."""
        texts = [message["content"] for message in messages]
        encoded = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        self._counts.append(sum(map(len, encoded)))

    def result(self) -> TokenStatistics:
        """Return the statistics of all rows."""
        counts = sorted(self._counts) or [0]
        last = len(counts) - 1
        return TokenStatistics(
            mean=round(sum(counts) / len(counts)),
            p50=counts[last // 2],
            p95=counts[int(last * 0.95)],
            max=counts[-1],
            total=sum(itertools.chain(counts)),
        )
