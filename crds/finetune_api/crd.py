"""The CustomResourceDefinitions of our kinds, generated from their models.

`python -m finetune_api.crd [--check] [FOLDER]` writes them, or tells which file has drifted.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel

from finetune_api.base import GROUP, VERSION, Model, Rule
from finetune_api.datasetregistration import DatasetRegistration
from finetune_api.finetunejob import FineTuneJob
from finetune_api.modelexport import ModelExport
from finetune_api.structural import Schema, structural_schema
from finetune_api.workerprofile import WorkerProfile

CRD_FOLDER = Path(__file__).parents[1]
HEADER = (
    "# Generated from the models in finetune_api by `python -m finetune_api.crd`; do not edit.\n"
)


class Column(NamedTuple):
    """A column of `kubectl get`; priority 1 is shown by `-o wide` only."""

    name: str
    path: str
    type: str = "string"
    priority: int = 0


PHASE = Column("Phase", ".status.phase")
REASON = Column("Reason", ".status.reason")
AGE = Column("Age", ".metadata.creationTimestamp", "date")


@dataclass(frozen=True, kw_only=True)
class Resource:
    """A kind, and how the API server names and shows it."""

    model: type[Model]
    plural: str
    short_name: str
    longest_name: int
    """Names of child objects are made from the name and must stay DNS labels (63 characters)."""
    columns: tuple[Column, ...]
    is_namespaced: bool = True

    @property
    def kind(self) -> str:
        """`FineTuneJob`."""
        return self.model.__name__

    @property
    def name_rules(self) -> tuple[Rule, Rule]:
        """The CEL rules on the root that bound the name."""
        return (
            Rule(
                f"self.metadata.name.size() <= {self.longest_name}",
                f"the name of a {self.kind} has at most {self.longest_name} characters, since names"
                " of its pods and services are made from it; choose a shorter name",
            ),
            Rule(
                "self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
                f"the name of a {self.kind} holds lower-case letters, digits and '-' only, since"
                " others refer to it; choose such a name",
            ),
        )

    def part(self, field: str) -> type[BaseModel]:
        """Return the class of `spec` or `status`."""
        annotation = self.model.model_fields[field].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            raise TypeError(f"{self.kind}.{field} must be a model, not {annotation}")
        return annotation


RESOURCES = (
    Resource(
        model=FineTuneJob,
        plural="finetunejobs",
        short_name="ftj",
        longest_name=52,
        columns=(
            PHASE,
            Column("Progress", ".status.progress.summary"),
            Column("Loss", ".status.metrics.loss"),
            Column("ETA", ".status.progress.eta"),
            REASON,
            Column("Stage", ".spec.stage", priority=1),
            Column("Method", ".spec.method", priority=1),
            Column("Model", ".spec.model.uri", priority=1),
            AGE,
        ),
    ),
    Resource(
        model=DatasetRegistration,
        plural="datasetregistrations",
        short_name="dreg",
        longest_name=63,
        columns=(
            PHASE,
            Column("Format", ".status.format"),
            Column("Rows", ".status.rows", "integer"),
            Column("Invalid", ".status.invalidRows", "integer"),
            REASON,
            AGE,
        ),
    ),
    Resource(
        model=ModelExport,
        plural="modelexports",
        short_name="mex",
        longest_name=63,
        columns=(
            PHASE,
            Column("Format", ".spec.format"),
            Column("URI", ".status.uri"),
            REASON,
            AGE,
        ),
    ),
    Resource(
        model=WorkerProfile,
        plural="workerprofiles",
        short_name="wprof",
        longest_name=63,
        columns=(
            Column("GPU", ".spec.gpu.product"),
            Column("Image", ".spec.image"),
            AGE,
        ),
        is_namespaced=False,
    ),
)


def resource_schema(resource: Resource) -> Schema:
    """Return the schema of a whole object."""
    rules = (*resource.name_rules, *resource.model.cel_rules)
    return {
        "type": "object",
        "description": resource.model.__doc__,
        "required": ["spec"],
        "x-kubernetes-validations": [rule.as_validation() for rule in rules],
        "properties": {
            "apiVersion": {"type": "string", "description": f"`{GROUP}/{VERSION}`."},
            "kind": {"type": "string", "description": f"`{resource.kind}`."},
            "metadata": {"type": "object"},
            "spec": structural_schema(resource.part("spec"), defaults=True),
            **_status_schema(resource),
        },
    }


def _status_schema(resource: Resource) -> Schema:
    """Return the schema of the status, of kinds that have one."""
    if "status" not in resource.model.model_fields:
        return {}
    # The operator writes every field it means: the API server shall add none.
    return {"status": structural_schema(resource.part("status"), defaults=False)}


def crd_manifest(resource: Resource) -> dict[str, Any]:
    """Return the CustomResourceDefinition of a resource."""
    singular = resource.kind.lower()
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced" if resource.is_namespaced else "Cluster",
            "names": {
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "plural": resource.plural,
                "singular": singular,
                "shortNames": [resource.short_name],
                "categories": ["finetune"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    **_of_status(resource),
                    "additionalPrinterColumns": [_column(column) for column in resource.columns],
                    "schema": {"openAPIV3Schema": resource_schema(resource)},
                }
            ],
        },
    }


def _of_status(resource: Resource) -> dict[str, Any]:
    """Return what a version says of a status, of kinds that have one."""
    if "status" not in resource.model.model_fields:
        return {}
    return {
        "subresources": {"status": {}},
        "selectableFields": [{"jsonPath": ".status.phase"}],
    }


def _column(column: Column) -> dict[str, Any]:
    result: dict[str, Any] = {
        "name": column.name,
        "type": column.type,
        "jsonPath": column.path,
    }
    return {**result, "priority": column.priority} if column.priority else result


def crd_files() -> dict[str, str]:
    """Return the text of every CRD file by its name."""
    return {
        f"{resource.plural}.yaml": HEADER
        + yaml.safe_dump(crd_manifest(resource), sort_keys=False, width=100, allow_unicode=True)
        for resource in RESOURCES
    }


def write_generated(files: Mapping[str, str], *, folder: Path, check: bool) -> list[str]:
    """Write generated files and return no name, or with `check` the names of those that differ."""
    if check:
        return [
            name
            for name, text in files.items()
            if not (folder / name).is_file() or (folder / name).read_text("utf-8") != text
        ]
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
    return []


def run_generator(files: Mapping[str, str], *, module: str, folder: Path) -> int:
    """Serve the command line of a generator; return the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument(
        "--check", action="store_true", help="exit 1 and name the files that differ"
    )
    parser.add_argument("folder", nargs="?", type=Path, default=folder, metavar="FOLDER")
    options = parser.parse_args()
    drifted = write_generated(files, folder=options.folder, check=options.check)
    for name in drifted:
        print(
            f"{options.folder / name}: differs from the models; run `python -m {module}`",
            file=sys.stderr,
        )
    return 1 if drifted else 0


def main() -> int:
    """Write or check the CRDs."""
    return run_generator(crd_files(), module="finetune_api.crd", folder=CRD_FOLDER)


if __name__ == "__main__":
    sys.exit(main())
