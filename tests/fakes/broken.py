"""Files broken on purpose, told by a table: see `tests/bad_inputs.yaml`."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.builders import merged

GOOD = '{"instruction": "a", "output": "b"}\n'
TEN_MEGABYTES = 10_000_000


def _parquet(columns: dict[str, list[Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def _large(text: str) -> str:
    return json.dumps({"instruction": text * TEN_MEGABYTES, "output": "b"})


GENERATORS: dict[str, Callable[[], bytes]] = {
    "ten-megabytes": lambda: (GOOD + _large("x") + "\n").encode(),
    "ten-megabytes-in-an-array": lambda: f"[{_large('x')}]".encode(),
    "ten-megabytes-in-parquet": lambda: _parquet(
        {"instruction": ["x" * TEN_MEGABYTES], "output": ["b"]}
    ),
    "latin-1": lambda: GOOD.encode() + '{"instruction": "é", "output": "b"}\n'.encode("latin-1"),
    "latin-1-in-an-array": lambda: '[{"instruction": "é"}]'.encode("latin-1"),
    "latin-1-in-csv": lambda: "instruction,output\na,b\né,c\n".encode("latin-1"),
    "utf-16": lambda: GOOD.encode("utf-16"),
    "binary": lambda: bytes(range(128, 256)) * 100,
    "parquet-cut-short": lambda: _parquet({"instruction": ["a"], "output": ["b"]})[:-20],
    "parquet-of-numbers": lambda: _parquet({"instruction": ["a", "b"], "output": [1, 2]}),
    "thousands-of-digits": lambda: (GOOD + '{"instruction": ' + "9" * 5000 + "}\n").encode(),
    "nested-deeply": lambda: (GOOD + "[" * 100_000 + "\n").encode(),
    "too-many-turns": lambda: json.dumps(
        {"messages": [{"role": "user", "content": "a"}] * 2002}
    ).encode(),
}


def generated(content: str | dict[str, str]) -> bytes:
    """Return a file's content: text as it is, or made by a named generator."""
    return content.encode() if isinstance(content, str) else GENERATORS[content["generator"]]()


def change_files(root: Path, changes: list[dict[str, Any]]) -> None:
    """Do to files what a table says, in order; paths are relative to `root`, `*` is allowed."""
    for change in changes:
        for verb, wanted in change.items():
            for path, value in (wanted if isinstance(wanted, dict) else {wanted: None}).items():
                for place in [*root.glob(path)] if "*" in path else [root / path]:
                    VERBS[verb](place, value)


def _remove(path: Path, _: Any) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def _merge(path: Path, changes: dict[str, Any]) -> None:
    path.write_text(json.dumps(merged(json.loads(path.read_text()), changes)), encoding="utf-8")


def _weights(path: Path, changes: dict[str, Any]) -> None:
    """Multiply weights by a number, keep only the first of their rows, or leave them out."""
    from safetensors.torch import load_file, save_file

    found = load_file(path)
    for name, change in changes.items():
        weight = found.pop(name)
        if "remove" in change:
            continue
        found[name] = (
            weight[: change["rows"]].clone()
            if "rows" in change
            else weight * float(change["times"])
        )
    save_file(found, path, metadata={"format": "pt"})


def _make(path: Path, kind: str) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    assert kind == "bloom", "a family without PyTorch's own attention"
    (path / "model.safetensors").unlink()
    config = BloomConfig(vocab_size=400, hidden_size=32, n_layer=1, n_head=2)
    BloomForCausalLM(config).save_pretrained(path)


VERBS: dict[str, Callable[[Path, Any], None]] = {
    "remove": _remove,
    "write": _write,
    "merge": _merge,
    "weights": _weights,
    "make": _make,
    "cut": lambda path, size: path.write_bytes(path.read_bytes()[:size]),
    "move": lambda path, target: shutil.move(path, path.parent / target),
    "link": lambda path, target: path.symlink_to(target),
    "folder": lambda path, _: path.mkdir(parents=True),
}
