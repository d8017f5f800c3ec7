"""Registered rows to conversations: the format found or given, every fault with its row."""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
from finetune_trainer.errors import DataError
from finetune_trainer.files import sha256_of

DETECTION_ROWS = 20


@dataclass(frozen=True)
class Source:
    """A registration's rows, on this machine."""

    files: list[Path]
    inline: str | None
    digest: str
    size_bytes: int

    def rows(self) -> Iterator[RawRow]:
        """Yield the rows, from the first."""
        return rows_of_text(self.inline) if self.inline is not None else read_rows(self.files)


@dataclass(frozen=True)
class ConvertedRow:
    """A conversation, or why the row is none."""

    number: int
    messages: list[Message]
    fault: RowFault | None = None


def open_source(source: DatasetSource, folders: Folders, *, name: str) -> Source:
    """Bring a registration's files here and identify them by content."""
    if source.inline is not None:
        data = source.inline.encode()
        return Source(
            [], source.inline, _digest([("inline", hashlib.sha256(data).hexdigest())]), len(data)
        )
    assert source.uri is not None, "the schema asks for one of uri and inline"
    location = Location(
        uri=source.uri,
        revision=source.revision,
        credentials_secret_ref=source.credentials_secret_ref,
    )
    what = f"DatasetRegistration '{name}', `spec.source.uri`"
    path = sources.fetch(location, folders, what=what, patterns=sources.DATA_FILES)
    files = sources.data_files(path, subset=source.subset, split=source.split)
    return Source(
        files=files,
        inline=None,
        digest=_digest([(file.name, sha256_of(file)) for file in files]),
        size_bytes=sum(file.stat().st_size for file in files),
    )


def _digest(parts: list[tuple[str, str]]) -> str:
    text = "\n".join(f"{name} {digest}" for name, digest in parts)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def find_format(source: Source, spec: DatasetRegistrationSpec) -> tuple[DatasetFormat, Layout]:
    """Return the format and the names of columns and roles.

    Raises:
        DataError: no row tells, or the first rows do not fit the given format.
    """
    columns, tags = spec.columns or Columns(), spec.tags or Tags()
    candidates = list(FORMATS) if spec.format is DatasetFormat.AUTO else [spec.format]
    seen: list[str] = []
    for row in itertools.islice(source.rows(), DETECTION_ROWS):
        if row.fault:
            continue
        for candidate in candidates:
            if layout := FORMATS[candidate].detect(row.value, columns, tags):
                return candidate, layout
        seen = seen or sorted(row.value)
    fields = ", ".join(f"`{name}`" for name in seen[:12]) or "no readable row"
    raise DataError(
        f"no {' or '.join(candidates)} row among the first {DETECTION_ROWS}; they hold {fields};"
        " set `spec.format`, and `spec.columns` or `spec.tags` where the names are unusual"
    )


def conversations(
    source: Source, format_: DatasetFormat, layout: Layout, *, limit: int | None
) -> Iterator[ConvertedRow]:
    """Yield each row as a conversation or a fault."""
    convert = FORMATS[format_].convert
    for row in itertools.islice(source.rows(), limit):
        if row.fault:
            yield ConvertedRow(row.number, [], RowFault("row", row.fault))
            continue
        try:
            yield ConvertedRow(row.number, convert(row.value, layout))
        except RowFault as fault:
            yield ConvertedRow(row.number, [], fault)


def registered_conversations(dataset: DatasetInput, folders: Folders) -> Iterator[list[Message]]:
    """Yield the valid conversations of a registration, exactly as they were validated.

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
            yield row.messages
            continue
        invalid += 1
        if invalid > dataset.spec.max_invalid_rows:
            raise DataError(
                f"DatasetRegistration '{dataset.name}', row {row.number}: {row.fault}; correct the"
                " row, or raise `spec.maxInvalidRows` to leave such rows out"
            )
