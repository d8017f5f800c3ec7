"""Rows of JSON lines, JSON, CSV and Parquet files, with their numbers and their faults."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_trainer.errors import DataError

MAX_ROW_BYTES = 4 << 20
MAX_JSON_BYTES = 2 << 30
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class RawRow:
    """A row as it stands in a file, or why it could not be read."""

    number: int
    value: dict[str, Any]
    fault: str | None = None


def read_rows(files: Iterable[Path]) -> Iterator[RawRow]:
    """Yield the rows of several files, numbered from 1 over all of them.

    Raises:
        DataError: a file cannot be read as what it is.
    """
    number = 0
    for file in files:
        for value in _read_file(file):
            number += 1
            if isinstance(value, str):
                yield RawRow(number, {}, value)
            elif not isinstance(value, dict):
                kind = type(value).__name__
                yield RawRow(
                    number, {}, f"the row is a {kind}; it must be an object with named fields"
                )
            else:
                yield RawRow(number, value)


def rows_of_text(text: str) -> Iterator[RawRow]:
    """Yield the rows of inline data: JSON lines or one JSON array."""
    values = (
        _parse_json(text, "source.inline")
        if text.lstrip().startswith("[")
        else _lines(io.BytesIO(text.encode()))
    )
    for number, value in enumerate(values, start=1):
        if isinstance(value, dict):
            yield RawRow(number, value)
        else:
            yield RawRow(number, {}, value if isinstance(value, str) else "the row is no object")


def _read_file(file: Path) -> Iterator[Any]:
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{file.name}: unknown file type; it must be {', '.join(SUFFIXES)}")
    if file.stat().st_size == 0:
        raise DataError(f"{file.name} is empty; it must hold at least one row")
    if suffix == ".jsonl":
        with file.open("rb") as stream:
            yield from _lines(stream)
    elif suffix == ".json":
        yield from _json_file(file)
    elif suffix == ".csv":
        yield from _csv_file(file)
    else:
        yield from _parquet_file(file)


def _lines(stream: Any) -> Iterator[Any]:
    while line := stream.readline(MAX_ROW_BYTES + 1):
        if len(line) > MAX_ROW_BYTES:
            size = len(line)
            while not line.endswith(b"\n") and (line := stream.readline(MAX_ROW_BYTES)):
                size += len(line)
            yield (
                f"the row has {size / 1e6:.1f} MB; a row may have {MAX_ROW_BYTES / 1e6:.1f} MB;"
                " split it"
            )
            continue
        if not line.strip():
            continue
        yield _parse_line(line)


def _parse_line(line: bytes) -> Any:
    """Return the row, or a sentence saying what is wrong with it."""
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return f"byte {error.start} is not valid UTF-8; save the file as UTF-8"
    except json.JSONDecodeError as error:
        return (
            f"broken JSON at column {error.colno}: {error.msg}; each line must be one JSON object"
        )
    except RecursionError:
        return "the row is nested too deeply; it must be a flat object or a list of turns"


def _json_file(file: Path) -> Iterator[Any]:
    if file.stat().st_size > MAX_JSON_BYTES:
        raise DataError(
            f"{file.name} is larger than 2 GiB; use .jsonl or .parquet, which are read row by row"
        )
    with file.open("rb") as stream:
        head = stream.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"{"):
        with file.open("rb") as stream:
            first = stream.readline(MAX_ROW_BYTES)
            if _is_object(first):
                stream.seek(0)
                yield from _lines(stream)
                return
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file.name}: byte {error.start} is not valid UTF-8; save the file as UTF-8"
        ) from error
    for value in _parse_json(text, file.name):
        if len(json.dumps(value)) > MAX_ROW_BYTES:
            yield f"the row is larger than {MAX_ROW_BYTES / 1e6:.1f} MB; split it"
        else:
            yield value


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _parse_json(text: str, name: str) -> list[Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{name}: broken JSON at line {error.lineno}, column {error.colno}: {error.msg};"
            " it must be one JSON array of objects"
        ) from error
    if not isinstance(value, list):
        raise DataError(
            f"{name}: the top level is a {type(value).__name__}; it must be an array of rows"
        )
    return value


def _csv_file(file: Path) -> Iterator[Any]:
    csv.field_size_limit(MAX_ROW_BYTES)
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            for row in csv.DictReader(stream, restkey="__extra__"):
                if "__extra__" in row:
                    yield f"the row has more cells than the {len(row) - 1} columns of the header"
                else:
                    yield {key: value for key, value in row.items() if value not in (None, "")}
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file.name}: byte {error.start} is not valid UTF-8; save the file as UTF-8"
        ) from error
    except csv.Error as error:
        raise DataError(
            f"{file.name}: {error}; it must be comma-separated with a header"
        ) from error


def _parquet_file(file: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{file.name} is no readable Parquet file: {str(error).splitlines()[0]}"
        ) from error
