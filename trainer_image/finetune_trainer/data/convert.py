"""Registered rows to conversations: the format found or given, every fault with its row."""

import hashlib
import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.contract import DatasetInput, Folders
from finetune_api.datasetregistration import (
    Columns,
    DatasetFormat,
    DatasetRegistrationSpec,
    DatasetSource,
    Tags,
)
from finetune_api.storage import Location
from finetune_trainer import sources
from finetune_trainer.data.formats import FORMATS
from finetune_trainer.data.formats.layout import Layout, Message, RowFault
from finetune_trainer.data.read import RawRow, read_rows, rows_of_text
from finetune_trainer.errors import DataError, StepError
from finetune_trainer.files import sha256_of

DETECTION_ROWS = 20
SEARCHED_ROWS = 10_000
SHOWN_FIELDS = 12


@dataclass(frozen=True)
class Source:
    """A registration's rows, on this machine."""

    what: str
    """The registration and its field, for people."""
    files: list[Path]
    inline: str | None
    digest: str
    size_bytes: int

    def rows(self) -> Iterator[RawRow]:
        """Yield the rows, from the first.

        Raises:
            DataError: a file cannot be read as what it is.
        """
        try:
            if self.inline is not None:
                yield from rows_of_text(self.inline)
            else:
                yield from read_rows(self.files)
        except DataError as error:
            raise DataError(f"{self.what}: {error}") from error


@dataclass(frozen=True)
class ConvertedRow:
    """A conversation, or why the row is none."""

    number: int
    messages: list[Message]
    fault: RowFault | None = None
    place: str = ""
    """File and line."""
    fields: Collection[str] = ()
    """Names of all fields of the row, also of those that are not read."""

    @property
    def where(self) -> str:
        """Return which row it is."""
        return f"row {self.number} ({self.place})" if self.place else f"row {self.number}"


def open_source(source: DatasetSource, folders: Folders, *, name: str) -> Source:
    """Bring a registration's files here and identify them by content.

    Raises:
        UserError, DataError: there are none. Infrastructure: the network.
    """
    owner = f"DatasetRegistration '{name}'"
    if source.inline is not None:
        data = source.inline.encode()
        digest = _digest([("inline", hashlib.sha256(data).hexdigest())])
        return Source(f"{owner}, `spec.source.inline`", [], source.inline, digest, len(data))
    assert source.uri is not None, "the schema asks for one of uri and inline"
    location = Location(
        uri=source.uri,
        revision=source.revision,
        credentials_secret_ref=source.credentials_secret_ref,
    )
    what = f"{owner}, `spec.source.uri`"
    path = sources.fetch(location, folders, what=what, patterns=sources.DATA_FILES)
    try:
        files = sources.data_files(path, subset=source.subset, split=source.split)
    except StepError as error:
        raise type(error)(f"{owner}, {error}") from error
    return Source(
        what=what,
        files=files,
        inline=None,
        digest=_digest([(file.name, sha256_of(file)) for file in files]),
        size_bytes=sum(file.stat().st_size for file in files),
    )


def _digest(parts: list[tuple[str, str]]) -> str:
    text = "\n".join(f"{name} {digest}" for name, digest in parts)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def find_format(source: Source, spec: DatasetRegistrationSpec) -> tuple[DatasetFormat, Layout]:
    """Return the format and the names of columns and roles; any format where no row is readable.

    Raises:
        DataError: the readable rows among the first fit no format, or not the given one.
    """
    columns, tags = spec.columns or Columns(), spec.tags or Tags()
    candidates = list(FORMATS) if spec.format is DatasetFormat.AUTO else [spec.format]
    unknown: RawRow | None = None
    readable = (row for row in itertools.islice(source.rows(), SEARCHED_ROWS) if not row.fault)
    for row in itertools.islice(readable, DETECTION_ROWS):
        for candidate in candidates:
            if layout := FORMATS[candidate].detect(row.value, columns, tags):
                return candidate, layout
        unknown = unknown or row
    if unknown is None:
        return candidates[0], Layout(columns, tags)
    needed = "; ".join(FORMATS[candidate].needs for candidate in candidates)
    raise DataError(
        f"{source.what}: row {unknown.number} ({unknown.place}) holds {_fields(unknown.value)}: the"
        f" shape is unknown; a row must hold one of these shapes: {needed}; rename the fields, or"
        " name yours in `spec.columns` and `spec.tags`"
    )


def _fields(row: Mapping[str, Any]) -> str:
    """Return the names of a row's fields, and of those of its first turn; never their values."""
    names = [f"`{name}`" for name in sorted(row)[:SHOWN_FIELDS]] or ["no field"]
    for name, value in row.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            names += [f"`{name}[0].{key}`" for key in sorted(value[0])[:SHOWN_FIELDS]]
    return ", ".join(names)


def conversations(
    source: Source, format_: DatasetFormat, layout: Layout, *, limit: int | None
) -> Iterator[ConvertedRow]:
    """Yield each row as a conversation or a fault."""
    convert = FORMATS[format_].convert
    for row in itertools.islice(source.rows(), limit):
        if row.fault:
            yield ConvertedRow(row.number, [], RowFault("row", row.fault), row.place)
            continue
        try:
            messages = convert(row.value, layout)
            yield ConvertedRow(row.number, messages, None, row.place, row.value)
        except RowFault as fault:
            yield ConvertedRow(row.number, [], fault, row.place, row.value)


def registered_conversations(dataset: DatasetInput, folders: Folders) -> Iterator[list[Message]]:
    """Yield the valid conversations of a registration, exactly as they were validated.

    Raises:
        DataError: the source is not what was validated.
    """
    return (row.messages for row in registered_rows(dataset, folders))


def registered_rows(dataset: DatasetInput, folders: Folders) -> Iterator[ConvertedRow]:
    """Yield the valid rows of a registration, with their numbers and places.

    Raises:
        DataError: the source is not what was validated.
    """
    own = folders.model_copy(update={"base": dataset.base})
    source = open_source(dataset.spec.source, own, name=dataset.name)
    if source.digest != dataset.digest:
        raise DataError(
            f"the data of DatasetRegistration '{dataset.name}' changed since it was validated;"
            " raise its `spec.refresh` to validate what is there now"
        )
    layout = Layout(dataset.columns or Columns(), dataset.tags or Tags())
    invalid = 0
    for row in conversations(source, dataset.format, layout, limit=dataset.spec.max_samples):
        if row.fault is None:
            yield row
            continue
        invalid += 1
        if invalid > dataset.spec.max_invalid_rows:
            raise DataError(
                f"DatasetRegistration '{dataset.name}', {row.where}: {row.fault}; correct the"
                " row, or raise `spec.maxInvalidRows` to leave such rows out"
            )
