"""The CRDs as the chart installs them: upgraded with it, and kept when it is uninstalled.

`python -m finetune_api.chart [--check] [FOLDER]` writes them, or tells which file has drifted.
"""

import sys
from pathlib import Path

import yaml

from finetune_api.crd import crd_files, run_generator

CHART_FOLDER = Path(__file__).parents[2] / "charts/finetune-operator/files/crds"
HEADER = "# Generated from crds/ by `python -m finetune_api.chart`; do not edit.\n"
KEPT = {"helm.sh/resource-policy": "keep"}
"""Helm deletes no object that has this annotation; with a CRD every object of its kind would go."""


def chart_files() -> dict[str, str]:
    """Return the text of every CRD of the chart by its file's name."""
    return {name: HEADER + _kept(text) for name, text in crd_files().items()}


def _kept(text: str) -> str:
    manifest = yaml.safe_load(text)
    manifest["metadata"]["annotations"] = KEPT
    return yaml.safe_dump(manifest, sort_keys=False, width=100, allow_unicode=True)


def main() -> int:
    """Write or check the chart's CRDs."""
    return run_generator(chart_files(), module="finetune_api.chart", folder=CHART_FOLDER)


if __name__ == "__main__":
    sys.exit(main())
