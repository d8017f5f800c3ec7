"""DatasetRegistration: data that jobs may train on, read and checked once, row by row."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from finetune_api.base import Message, Model, Rule, ShortText, StatusModel
from finetune_api.meta import Metadata
from finetune_api.status import Status
from finetune_api.storage import Location, SecretReference, Uri


class DatasetFormat(StrEnum):
    """Shapes of a row."""

    AUTO = "auto"
    ALPACA = "alpaca"
    SHAREGPT = "sharegpt"
    OPENAI = "openai"


class DatasetSource(Model):
    """Where the rows are."""

    cel_rules = (
        Rule("has(self.uri) != has(self.inline)", "set exactly one of `uri` and `inline`"),
        Rule(
            "has(self.uri) || !(has(self.revision) || has(self.subset) || has(self.split)"
            " || has(self.credentialsSecretRef))",
            "`revision`, `subset`, `split` and `credentialsSecretRef` need `uri`",
        ),
    )

    uri: Uri | None = None
    """A file (`.jsonl`, `.json`, `.csv`, `.parquet`) or a folder of such files; schemes as in
    FineTuneJob `spec.model.uri`. On the hub: `hf://datasets/org/name`."""
    inline: Annotated[str, Field(min_length=1, max_length=65536)] | None = None
    """The rows themselves, as JSON lines or one JSON array: for small data."""
    revision: ShortText | None = None
    """Branch, tag or commit of an `hf://` repository. Unset: `main`."""
    subset: ShortText | None = None
    """Folder of the source to read. Unset: all of it."""
    split: ShortText | None = None
    """Only files whose name contains this word, where a source holds several splits, e.g. `train`.
    Unset: `train` where such files exist, else all."""
    credentials_secret_ref: SecretReference | None = None
    """Secret with the credentials of a private source. Unset: anonymous."""


class Columns(Model):
    """Names of the columns in the source; what is unset is found by its usual names."""

    prompt: ShortText | None = None
    """alpaca: the instruction. Usual: instruction, prompt, question."""
    query: ShortText | None = None
    """alpaca: further input, joined to the prompt by a line break. Usual: input, query."""
    response: ShortText | None = None
    """alpaca: the answer. Usual: output, response, answer, completion."""
    history: ShortText | None = None
    """alpaca: earlier turns, a list of [prompt, response] pairs. Usual: history."""
    system: ShortText | None = None
    """System text of the row. Usual: system."""
    messages: ShortText | None = None
    """sharegpt, openai: the list of turns. Usual: conversations, messages."""


class Tags(Model):
    """Keys and roles within a turn; what is unset is found by its usual names."""

    role: ShortText | None = None
    """Key that holds the speaker. Usual: from, role."""
    content: ShortText | None = None
    """Key that holds the text. Usual: value, content."""
    user: ShortText | None = None
    """Name of the user. Usual: human, user."""
    assistant: ShortText | None = None
    """Name of the assistant. Usual: gpt, assistant."""
    system: ShortText | None = None
    """Name of the system. Usual: system."""


class ValidationMode(StrEnum):
    """How much of the data is read at registration."""

    FULL = "Full"
    SAMPLE = "Sample"


class Validation(Model):
    """How the rows are checked."""

    mode: ValidationMode = ValidationMode.FULL
    """`Full` reads every row; `Sample` the first 10,000, for very large data."""


class DatasetRegistrationSpec(Model):
    """A source, and how to read it."""

    source: DatasetSource
    """Where the rows are."""
    format: DatasetFormat = DatasetFormat.AUTO
    """Shape of the rows. `auto` finds it and tells it in `status.format`."""
    columns: Columns | None = None
    """Columns with other names than the usual ones."""
    tags: Tags | None = None
    """Keys and roles with other names than the usual ones (sharegpt, openai)."""
    max_samples: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Only the first rows. Unset: all."""
    validation: Validation | None = None
    """Unset: every row is read."""
    max_invalid_rows: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    """Invalid rows that are left out and counted; one more makes the data not Ready."""
    tokenizer: Location | None = None
    """A model whose tokenizer counts tokens for `status.tokens`. Unset: no token statistics."""
    preview_rows: Annotated[int, Field(ge=0, le=5)] = 0
    """Rows shown in `status.preview`. 0, since rows can be private."""
    refresh: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Raise it to read the source again after it changed."""


class RowError(StatusModel):
    """One invalid row."""

    row: int
    """Number of the row, from 1."""
    field: ShortText
    """Field of the row that is at fault; `row`: the row cannot be read."""
    message: Message
    """File and line, and what is wrong; at most 300 characters."""


class TokenStatistics(StatusModel):
    """Tokens per row, rendered without a chat template."""

    mean: int
    """Mean tokens of a valid row, rounded."""
    p50: int
    """Median tokens of a valid row, the lower one of two."""
    p95: int
    """95th percentile of the tokens of a valid row."""
    max: int
    """Tokens of the longest valid row."""
    total: int
    """Tokens of all valid rows together."""


class DatasetRegistrationStatus(Status):
    """State of a DatasetRegistration."""

    observed_refresh: int = 0
    """`spec.refresh` at the last validation that succeeded."""
    format: Annotated[str, Field(max_length=32)] = ""
    """Shape of the rows: as given, or with `auto` as found in the first readable rows."""
    purpose: Annotated[str, Field(max_length=32)] = ""
    """What the rows are for: `conversation`."""
    rows: int = 0
    """Valid rows among those read, once `Ready`."""
    invalid_rows: int = 0
    """Invalid rows among those read."""
    errors: Annotated[list[RowError], Field(max_length=10)] = []
    """The first ten invalid rows."""
    columns: Columns | None = None
    """Columns that are read, given or found."""
    tags: Tags | None = None
    """Keys and roles that are read, given or found (sharegpt, openai)."""
    size_bytes: int = 0
    """Bytes of the source's files, or of the inline rows."""
    digest: Annotated[str, Field(max_length=128)] = ""
    """`sha256:` over names and contents of the source's files; a job refuses changed data."""
    tokens: TokenStatistics | None = None
    """Tokens per row, without a chat template. Unset: `spec.tokenizer` is."""
    preview: Annotated[list[Message], Field(max_length=5)] = []
    """The first `spec.previewRows` valid rows as JSON, cut at 300 characters each."""


class DatasetRegistration(Model):
    """Data that jobs may train on."""

    metadata: Metadata
    spec: DatasetRegistrationSpec
    status: DatasetRegistrationStatus = DatasetRegistrationStatus()
