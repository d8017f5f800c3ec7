"""Rows of JSON lines, JSON, CSV and Parquet files, with their places and their faults."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from finetune_trainer.errors import DataError

MAX_ROW_BYTES = 4 << 20
MAX_JSON_BYTES = 2 << 30
PARQUET_ROWS = 16
MAX_PARQUET_ROW_BYTES = 3 * MAX_ROW_BYTES
"""What is larger is not even looked into; of what is not, the field that is too large is told."""
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
TOO_LARGE = f"a row may have {MAX_ROW_BYTES / 1e6:.1f} MB; split it"
KINDS = {
    dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number",
    float: "a number", type(None): "null", bytes: "binary",
}  # fmt: skip


@dataclass(frozen=True)
class RawRow:
    """A row as it stands in a file, or why it could not be read."""

    number: int
    """From 1, over all files."""
    value: dict[str, Any]
    fault: str | None = None
    place: str = ""
    """File and line, or number within the file."""


@dataclass(frozen=True)
class _Broken:
    """Stands for a row that could not be read."""

    fault: str


Placed = tuple[str, Any]
"""Where a value stands, and the value."""


def kind_of(value: object) -> str:
    """Return what a value is, in the words of JSON."""
    return KINDS.get(type(value), f"a {type(value).__name__}")


def read_rows(files: Iterable[Path]) -> Iterator[RawRow]:
    """Yield the rows of several files, numbered from 1 over all of them.

    Raises:
        DataError: a file cannot be read as what it is.
    """
    return _numbered(placed for file in files for placed in _read_file(file))


def rows_of_text(text: str) -> Iterator[RawRow]:
    """Yield the rows of inline data: JSON lines or one JSON array.

    Raises:
        DataError: it is a broken array.
    """
    if text.lstrip().startswith("["):
        return _numbered(_items(_parse_json(text, "")))
    return _numbered(_lines(io.BytesIO(text.encode(errors="surrogatepass")), "line "))


def _numbered(values: Iterable[Placed]) -> Iterator[RawRow]:
    for number, (place, value) in enumerate(values, start=1):
        if isinstance(value, dict):
            yield RawRow(number, value, place=place)
            continue
        fault = (
            value.fault
            if isinstance(value, _Broken)
            else f"the row is {kind_of(value)}; it must be an object with named fields"
        )
        yield RawRow(number, {}, fault, place)


def _read_file(file: Path) -> Iterator[Placed]:
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(
            f"{file.name}: unknown file type; it must be {', '.join(SUFFIXES)}; convert or unpack it"
        )
    if file.stat().st_size == 0:
        raise DataError(f"{file.name} is empty; it must hold at least one row; add rows")
    if suffix == ".jsonl":
        with file.open("rb") as stream:
            yield from _lines(stream, f"{file.name}:")
    elif suffix == ".json":
        yield from _json_file(file)
    elif suffix == ".csv":
        yield from _csv_file(file)
    else:
        yield from _parquet_file(file)


def _lines(stream: BinaryIO, prefix: str) -> Iterator[Placed]:
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            size = len(line)
            while not line.endswith(b"\n") and (line := stream.readline(MAX_ROW_BYTES)):
                size += len(line)
            yield f"{prefix}{number}", _Broken(f"the row has {size / 1e6:.1f} MB; {TOO_LARGE}")
        elif stripped := line.strip():
            yield f"{prefix}{number}", _parse_line(stripped)


def _parse_line(line: bytes) -> Any:
    """Return the row, or what is wrong with it."""
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return _Broken(f"byte {error.start + 1} is not valid UTF-8; save the file as UTF-8")
    except json.JSONDecodeError as error:
        return _Broken(
            f"broken JSON at column {error.colno}: {error.msg}; each line must be one JSON object"
        )
    except RecursionError:
        return _Broken("the row is nested too deeply; it must be a flat object or a list of turns")
    except ValueError:  # Python reads no integer of thousands of digits
        return _Broken("a number has thousands of digits; write it as text, or shorten it")


def _json_file(file: Path) -> Iterator[Placed]:
    if file.stat().st_size > MAX_JSON_BYTES:
        raise DataError(
            f"{file.name} is larger than 2 GiB; use .jsonl or .parquet, which are read row by row"
        )
    with file.open("rb") as stream:
        head = stream.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"{"):
        with file.open("rb") as stream:
            first = stream.readline(MAX_ROW_BYTES)
            if isinstance(_parse_line(first), dict):
                stream.seek(0)
                yield from _lines(stream, f"{file.name}:")
                return
    content = file.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file.name}:{line}: byte {error.start + 1} of the file is not valid UTF-8; save it as"
            " UTF-8"
        ) from error
    yield from _items(_parse_json(text, file.name), f"{file.name}, ")


def _items(values: list[Any], prefix: str = "") -> Iterator[Placed]:
    for number, value in enumerate(values, start=1):
        size = len(json.dumps(value))
        large = _Broken(f"the row has {size / 1e6:.1f} MB; {TOO_LARGE}")
        yield f"{prefix}item {number}", value if size <= MAX_ROW_BYTES else large


def _parse_json(text: str, name: str) -> list[Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{name}:{error.lineno}" if name else f"line {error.lineno}"
        raise DataError(
            f"{place}: broken JSON at column {error.colno}: {error.msg}; it must be one JSON array"
            " of objects, or one object a line; correct it"
        ) from error
    except (RecursionError, ValueError) as error:
        raise DataError(
            f"{name or 'the text'} is nested too deeply, or holds a number of thousands of digits;"
            " it must be an array of flat objects; correct it"
        ) from error
    if not isinstance(value, list):
        raise DataError(
            f"{name or 'the text'}: the top level is {kind_of(value)}; it must be an array of rows;"
            " put the rows into [ ]"
        )
    return value


def _csv_file(file: Path) -> Iterator[Placed]:
    csv.field_size_limit(MAX_ROW_BYTES)
    with file.open("rb") as stream:
        reader = csv.DictReader(_csv_lines(stream, file.name), strict=True)
        try:
            _check_header(list(reader.fieldnames or []), file.name)
            for row in reader:
                place = f"{file.name}:{reader.line_num}"
                if None in row:  # where DictReader keeps what is too much
                    width = len(row) - 1
                    message = f"the row has more cells than the {width} columns of the header"
                    yield place, _Broken(f"{message}; quote cells that hold commas")
                else:
                    yield place, {k: v for k, v in row.items() if v not in (None, "")}
        except csv.Error as error:
            what = f"a cell is too large; {TOO_LARGE}" if "limit" in str(error) else str(error)
            raise DataError(
                f"{file.name}:{reader.line_num}: {what}; it must be comma-separated, with quotes"
                " only around whole cells"
            ) from error


def _csv_lines(stream: BinaryIO, name: str) -> Iterator[str]:
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            raise DataError(f"{name}:{number}: the line is too large; {TOO_LARGE}")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}:{number}: byte {error.start + 1} is not valid UTF-8; save the file as UTF-8"
            ) from error


def _check_header(names: list[str], file: str) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            f"{file}:1: the header names column `{twice[0]}` twice; give each its own name"
        )
    if len(names) == 1 and (other := next((c for c in ";\t|" if c in names[0]), None)):
        raise DataError(
            f"{file}:1: the header is separated by {other!r}; it must be by commas; save it so"
        )


def _parquet_file(file: Path) -> Iterator[Placed]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        with pyarrow.parquet.ParquetFile(file) as table:
            # A small file may hold much: one long text that many rows share, or zeros.
            for batch in table.iter_batches(batch_size=PARQUET_ROWS):
                for row in _rows_of(batch):
                    number += 1
                    yield f"{file.name}, row {number}", row
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{file.name} is no readable Parquet file: {str(error).splitlines()[0]}; write it again"
        ) from error


def _rows_of(batch: Any) -> Iterator[Any]:
    """Yield the rows of a record batch; of one that is large each by itself, as its size allows."""
    if batch.nbytes <= MAX_ROW_BYTES:
        yield from batch.to_pylist()
        return
    for index in range(batch.num_rows):
        row = batch.slice(index, 1)
        size = row.nbytes
        large = _Broken(f"the row has {size / 1e6:.1f} MB; {TOO_LARGE}")
        yield row.to_pylist()[0] if size <= MAX_PARQUET_ROW_BYTES else large
