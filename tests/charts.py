"""The chart, and the real Helm that renders and installs it."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import Access, tools
from tests.cluster.commands import ClusterError

CHART = Path(__file__).parents[1] / "charts/finetune-operator"
OLD_VALUES = sorted((Path(__file__).parent / "fakes").glob("values-*.yaml"))
HOME = "finetune-system"
Manifest = dict[str, Any]
Manifests = dict[tuple[str, str, str], Manifest]
each_old = pytest.mark.parametrize("old", OLD_VALUES, ids=lambda path: path.stem)


class Helm:
    """Helm, run in a folder for values."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program, self._folder = program, folder

    def run(
        self, *arguments: str, values: Manifest | None = None, on: Access | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run Helm to its end."""
        words = [str(self._program), *arguments]
        if values is not None:
            file = self._folder / "values.yaml"
            file.write_text(yaml.safe_dump(values), encoding="utf-8")
            words += ["--values", str(file)]
        environment = on.environment() if on else None
        return subprocess.run(
            words, capture_output=True, text=True, timeout=300, check=False, env=environment
        )

    def done(self, *arguments: str, values: Manifest | None = None, on: Access) -> str:
        """Run Helm, which must succeed, on a cluster; return what it printed."""
        ended = self.run(*arguments, values=values, on=on)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def render(self, *arguments: str, **values: Any) -> Manifests:
        """Return what `helm template` makes, by kind, namespace and name."""
        words = ["template", "finetune-operator", str(CHART), "--namespace", HOME]
        ended = self.run(*words, *arguments, values=values)
        assert ended.returncode == 0, ended.stderr
        found = [document for document in yaml.safe_load_all(ended.stdout) if document]
        by_name = {
            (item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]): item
            for item in found
        }
        assert len(by_name) == len(found), "two manifests of one name"
        return by_name


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    try:
        return Helm(tools.helm(), tmp_path_factory.mktemp("helm"))
    except ClusterError as error:
        pytest.skip(f"Helm could not be built: {error}")
