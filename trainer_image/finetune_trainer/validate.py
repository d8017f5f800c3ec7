"""`validate`: reads every row of a registration and says what is wrong with which."""

import itertools
import json

from finetune_api.contract import JobFile, ValidateResult
from finetune_api.datasetregistration import (
    Columns,
    DatasetFormat,
    DatasetRegistrationSpec,
    RowError,
    TokenStatistics,
    ValidationMode,
)
from finetune_trainer import sources
from finetune_trainer.data.convert import (
    SHOWN_FIELDS,
    ConvertedRow,
    conversations,
    find_format,
    open_source,
)
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
    found = _Findings(spec, _TokenCounter(spec, file) if spec.tokenizer else None)
    for row in conversations(source, format_, layout, limit=_row_limit(spec)):
        found.add(row)
    found.require_enough(source.what)
    return ValidateResult(
        format=format_,
        purpose="conversation",
        rows=found.rows,
        invalid_rows=found.invalid,
        errors=found.errors,
        columns=layout.columns,
        tags=layout.tags if format_ is not DatasetFormat.ALPACA else None,
        size_bytes=source.size_bytes,
        digest=source.digest,
        tokens=found.counter.result() if found.counter else None,
        preview=found.preview,
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


class _Findings:
    """What is found row by row."""

    def __init__(self, spec: DatasetRegistrationSpec, counter: "_TokenCounter | None") -> None:
        self._spec, self.counter = spec, counter
        self.rows = self.invalid = 0
        self.errors: list[RowError] = []
        self.preview: list[str] = []
        self._fields: set[str] = set()

    def add(self, row: ConvertedRow) -> None:
        """Take one row."""
        self._fields.update(row.fields)
        if row.fault is not None:
            self.invalid += 1
            if len(self.errors) < REPORTED_ERRORS:
                text = f"{row.place}: {row.fault}" if row.place else str(row.fault)
                field = row.fault.field[:256]
                self.errors.append(RowError(row=row.number, field=field, message=text[:300]))
            return
        self.rows += 1
        if self.counter:
            self.counter.add(row.messages)
        if len(self.preview) < self._spec.preview_rows:
            text = json.dumps(row.messages, ensure_ascii=False)
            self.preview.append(text[:PREVIEW_CHARACTERS])

    def require_enough(self, what: str) -> None:
        """Refuse what cannot be trained on.

        Raises:
            DataError: too many rows are invalid, there is none, or a named column is in none.
        """
        allowed = self._spec.max_invalid_rows
        if self.invalid > allowed or (self.invalid and not self.rows):
            first = self.errors[0]
            leave_out = ", or raise `spec.maxInvalidRows` to leave such rows out"
            raise InvalidRows(
                f"{what}: {self.invalid} of {self.rows + self.invalid} rows are invalid,"
                f" `spec.maxInvalidRows` is {allowed}; the first is row {first.row}, {first.message};"
                f" correct the rows{leave_out if self.rows else ''}",
                self.errors,
                self.invalid,
            )
        if self.rows == 0:
            raise DataError(f"{what}: there is no row; it must hold at least one; add rows")
        given = (self._spec.columns or Columns()).model_dump(exclude_none=True)
        for key, name in given.items():
            if name not in self._fields:
                raise DataError(
                    f"`spec.columns.{key}` is {name!r}, but no row of {what} has that field; they"
                    f" have {', '.join(sorted(self._fields)[:SHOWN_FIELDS])}; correct it"
                )


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
        self._tokenizer = load_tokenizer(path, what=f"`spec.tokenizer`: {spec.tokenizer.uri}")
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
