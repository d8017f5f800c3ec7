"""Tokenised rows as `prepare` leaves them: what `datasets.Dataset.from_file` maps into memory."""

from pathlib import Path

from finetune_trainer.data.chat import Tokens

ROWS_FILE = "rows.arrow"
CHUNK_ROWS = 1000
IGNORED = -100
"""The label of a token that is not trained on, by convention of the libraries."""


def save_rows(rows: list[Tokens], folder: Path) -> None:
    """Write rows into a new folder, as one Arrow stream."""
    import pyarrow

    labels = (
        [token if kept else IGNORED for token, kept in zip(row.input_ids, row.trained, strict=True)]
        for row in rows
    )
    columns = {
        "input_ids": pyarrow.array([r.input_ids for r in rows], pyarrow.list_(pyarrow.int32())),
        "labels": pyarrow.array(list(labels), pyarrow.list_(pyarrow.int64())),
    }
    table = pyarrow.table(columns)
    folder.mkdir()
    with pyarrow.ipc.new_stream(str(folder / ROWS_FILE), table.schema) as stream:
        stream.write_table(table, max_chunksize=CHUNK_ROWS)
