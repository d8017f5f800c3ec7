"""Fixtures that many tests share."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes.tiny import alpaca_rows, tiny_model, write_jsonl

PINNED = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
RUN_TIMEOUT_SECONDS = 300


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny model, made once a session."""
    return tiny_model(tmp_path_factory.mktemp("models") / "model")


@dataclass
class Place:
    """A folder with a model, data and manifests, and the `finetune local` that works on it."""

    folder: Path

    def write(self, *manifests: dict[str, Any], name: str = "job.yaml") -> Path:
        """Write manifests into one file."""
        path = self.folder / name
        path.write_text(yaml.safe_dump_all(manifests), encoding="utf-8")
        return path

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of `finetune local`."""
        state = ["--state", str(self.folder / "state")]
        return [sys.executable, "-m", "finetune_cli", "local", arguments[0], *state, *arguments[1:]]

    def finetune(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `finetune local` to its end."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env={**os.environ, **PINNED, **environment},
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_SECONDS,
            check=False,
        )

    @property
    def state(self) -> Path:
        """Return the state folder."""
        return self.folder / "state"

    def output(self, job: str = "tiny", run: int = 1) -> Path:
        """Return the folder of a run's result at the default location."""
        return self.state / "claims" / f"{job}-output" / "default" / job / f"run-{run}"


@pytest.fixture
def place(tmp_path: Path, model_folder: Path) -> Place:
    """Return a folder with the tiny model and 24 rows."""
    (tmp_path / "model").symlink_to(model_folder)
    write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(24))
    return Place(tmp_path)
