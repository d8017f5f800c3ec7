"""Every metric stands in docs/operations.md, and no other does."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from finetune_operator.metrics import Metrics

CHART = Path(__file__).parents[2] / "charts/finetune-operator"
DOCUMENT = Path(__file__).parents[2] / "docs/operations.md"


def metric_names() -> set[str]:
    """Return the names under which Prometheus finds our metrics."""
    metrics = Metrics()
    nothing: Any = SimpleNamespace(
        length=0, kinds={"FineTuneJob": []}, informers=[], written=0, shed=0
    )
    metrics.watch(queue=nothing, cache=nothing, leads=lambda: True, most_jobs=1, writer=nothing)
    ends = {"counter": "_total"}
    return {family.name + ends.get(family.type, "") for family in metrics.registry.collect()}


def test_metrics_are_documented() -> None:
    table = DOCUMENT.read_text("utf-8").split("## Metrics")[1].split("## Alerts")[0]
    assert metric_names() == set(re.findall(r"`(finetune_[a-z_]+)`", table))


def named(text: str) -> set[str]:
    """Return the metrics that expressions name; of histograms without their endings."""
    found = set(re.findall(r"finetune_[a-z_]+", text))
    return {re.sub(r"(?<=seconds)_(bucket|count|sum)$", "", name) for name in found}


def test_alerts_are_about_metrics_and_have_a_runbook() -> None:
    rules = yaml.safe_load((CHART / "files/alerts.yaml").read_text("utf-8"))["groups"][0]["rules"]
    runbook = DOCUMENT.read_text("utf-8").split("## Alerts")[1]
    for rule in rules:
        assert named(rule["expr"]) <= metric_names(), rule["alert"]
        assert f"**{rule['alert']}**" in runbook
        assert rule["annotations"].keys() == {"summary", "description"}
    assert len(re.findall(r"\*\*Finetune\w+\*\*", runbook)) == len(rules)


def test_the_dashboard_is_about_metrics() -> None:
    panels = json.loads((CHART / "files/dashboard.json").read_text("utf-8"))["panels"]
    shown = set().union(*(named(t["expr"]) for panel in panels for t in panel["targets"]))
    assert shown <= metric_names()
    assert len(shown) >= 12
    assert len({panel["id"] for panel in panels}) == len(panels)
