"""Every shipped manifest, and every block of YAML in the documents, is admitted as an API server would."""

from pathlib import Path
from typing import Any

import pytest

from finetune_api.contract import DatasetInput, Folders, JobFile
from finetune_api.contradictions import contradictions
from finetune_api.datasetregistration import DatasetRegistration
from finetune_api.finetunejob import FineTuneJob
from finetune_api.resolve import Machine
from finetune_api.yaml_reader import read_documents
from finetune_operator.admission import admit

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def bodies(path: Path) -> list[dict[str, Any]]:
    return read_documents(path.read_text(encoding="utf-8"), source=str(path))


def yaml_blocks() -> list[tuple[str, str]]:
    found = []
    for path in DOCUMENTS:
        parts = path.read_text(encoding="utf-8").split("```yaml\n")[1:]
        found += [(f"{path.name}-{n}", part.split("```")[0]) for n, part in enumerate(parts)]
    return [(name, block) for name, block in found if "apiVersion: finetune.dev" in block]


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3
    assert yaml_blocks()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_admitted_and_hold_together(path: Path) -> None:
    for body in bodies(path):
        resource = admit(body)
        if isinstance(resource, FineTuneJob):
            assert contradictions(resource.spec, here=Machine()) == []


@pytest.mark.parametrize(("name", "block"), yaml_blocks())
def test_documented_manifests_are_admitted(name: str, block: str) -> None:
    documents = read_documents(block, source=name)
    assert documents
    for body in documents:
        admit(body)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_data_of_the_examples_is_valid(path: Path) -> None:
    from finetune_trainer.validate import validate

    for body in bodies(path):
        resource = admit(body)
        if not isinstance(resource, DatasetRegistration):
            continue
        name = resource.metadata.name
        given = DatasetInput(name=name, spec=resource.spec, digest="", format=resource.spec.format)
        file = JobFile(
            step="validate", namespace="default", name=name, uid="x", registration=given,
            folders=Folders(base=str(path.parent)),
        )  # fmt: skip
        found = validate(file)
        assert found.rows >= 24
        assert found.invalid_rows == 0
