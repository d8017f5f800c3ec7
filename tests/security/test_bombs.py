"""Small files that would become large, and files that would run code: refused before they do."""

import gzip
import os
import pickle
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from finetune_api.finetunejob import BaseModelSource
from finetune_trainer.data.read import MAX_ROW_BYTES, read_rows
from finetune_trainer.errors import DataError, UserError
from finetune_trainer.models import prepare_model
from tests.fakes.bench import Bench

LONG = "x" * (4 * MAX_ROW_BYTES)
ROWS = 400
MOST_BYTES = 3 << 29


def parquet_bomb(path: Path) -> None:
    """Write one long text that is the value of every row: what 6.7 GB of JSON would say."""
    column = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * ROWS, pyarrow.int32()), pyarrow.array([LONG])
    )
    table = pyarrow.table({"output": column})
    pyarrow.parquet.write_table(table, path, compression="zstd", store_schema=False)


def told_of(path: Path) -> str:
    """Read a file's rows with little memory; return how many there are, and what is said last."""
    reading = (
        "import sys, pathlib\n"
        "from finetune_trainer.data.read import read_rows\n"
        "from finetune_trainer.errors import DataError\n"
        "try:\n"
        "    faults = [row.fault for row in read_rows([pathlib.Path(sys.argv[1])])]\n"
        "    print(len(faults), faults[-1])\n"
        "except DataError as error:\n"
        "    print(error)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", reading, str(path)], capture_output=True, text=True, check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES)),
    ).stdout  # fmt: skip


def test_a_parquet_file_that_becomes_large(tmp_path: Path) -> None:
    bomb = tmp_path / "rows.parquet"
    parquet_bomb(bomb)
    assert bomb.stat().st_size < 1 << 20
    assert told_of(bomb) == f"{ROWS} the row has 16.8 MB; a row may have 4.2 MB; split it\n"


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_a_line_without_end(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(MOST_BYTES + (1 << 29))  # of holes: it takes no room
    assert f"{MAX_ROW_BYTES / 1e6:.1f} MB; split it" in told_of(tmp_path / name)


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.zip", "rows.tar", "rows.jsonl.zst"])
def test_archives_are_not_unpacked(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"[" * (64 << 20)))
    with pytest.raises(DataError, match="unknown file type; it must be .*; convert or unpack it"):
        list(read_rows([tmp_path / name]))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet"])
def test_an_archive_by_another_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"[" * (64 << 20)))
    faults = []
    with suppress(DataError):
        faults = [row.fault for row in read_rows([tmp_path / name])]
    assert None not in faults


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("written", ["by pickle", "by torch", "by torch, of old"])
def test_weights_that_run_code(model_folder: Path, tmp_path: Path, written: str) -> None:
    import torch

    bench, mark = Bench.made(tmp_path, model_folder), tmp_path / "ran"
    weights = bench.folder / "model/pytorch_model.bin"
    (bench.folder / "model/model.safetensors").unlink()
    if written == "by pickle":
        weights.write_bytes(pickle.dumps({"a": Runs(mark)}))
    else:
        zipped = written == "by torch"
        torch.save({"a": Runs(mark)}, weights, _use_new_zipfile_serialization=zipped)
    source = BaseModelSource(uri="file://model", allow_pickle=True)
    with pytest.raises(UserError, match="the pickle files cannot be read"):
        prepare_model(source, bench.folders())
    assert not mark.exists()
