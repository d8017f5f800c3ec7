"""Fixtures that many tests share."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.fixtures import cluster, namespace, own_cluster
from tests.fakes.tiny import alpaca_rows, tiny_model, write_jsonl
from tests.fakes.warm_python import write_client

__all__ = ["cluster", "namespace", "own_cluster"]

PINNED = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
RUN_TIMEOUT_SECONDS = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a cluster, or Helm built for one: `make e2e` runs it."""
    for item in items:
        if {"cluster", "helm"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("cluster")


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return a `python` that has the trainer's libraries imported already."""
    folder = tmp_path_factory.mktemp("warm")
    path = folder / "socket"
    environment = {**os.environ, **PINNED}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.warm_python", str(path)], env=environment
    )
    try:
        until = time.monotonic() + RUN_TIMEOUT_SECONDS
        while not path.exists() and time.monotonic() < until and server.poll() is None:
            time.sleep(0.05)
        yield str(write_client(folder / "python", path))
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny model, made once a session."""
    return tiny_model(tmp_path_factory.mktemp("models") / "model")


@dataclass
class Place:
    """A folder with a model, data and manifests, and the `finetune local` that works on it."""

    folder: Path
    python: str

    def write(self, *manifests: dict[str, Any], name: str = "job.yaml") -> Path:
        """Write manifests into one file."""
        path = self.folder / name
        path.write_text(yaml.safe_dump_all(manifests), encoding="utf-8")
        return path

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of `finetune local`."""
        state = ["--state", str(self.folder / "state")]
        return [sys.executable, "-m", "finetune_cli", "local", arguments[0], *state, *arguments[1:]]

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a run: one thread, no network, the fast `python`."""
        return {**os.environ, **PINNED, "FINETUNE_TRAINER_PYTHON": self.python, **more}

    def finetune(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `finetune local` to its end."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(**environment),
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


def make_place(folder: Path, model_folder: Path, python: str) -> Place:
    """Return a folder with the tiny model and 24 rows."""
    (folder / "model").symlink_to(model_folder)
    write_jsonl(folder / "rows.jsonl", alpaca_rows(24))
    return Place(folder, python)


@pytest.fixture
def place(tmp_path: Path, model_folder: Path, warm_python: str) -> Place:
    """Return a folder with the tiny model and 24 rows."""
    return make_place(tmp_path, model_folder, warm_python)
