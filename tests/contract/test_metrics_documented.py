"""Every metric stands in docs/operations.md, and no other does."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from finetune_operator.metrics import Metrics

DOCUMENT = Path(__file__).parents[2] / "docs/operations.md"


def test_metrics_are_documented() -> None:
    metrics = Metrics()
    nothing: Any = SimpleNamespace(
        length=0, kinds={"FineTuneJob": []}, informers=[], written=0, shed=0
    )
    metrics.watch(queue=nothing, cache=nothing, leads=lambda: True, most_jobs=1, writer=nothing)
    ends = {"counter": "_total"}
    names = {family.name + ends.get(family.type, "") for family in metrics.registry.collect()}
    table = DOCUMENT.read_text("utf-8").split("## Metrics")[1].split("## What")[0]
    assert names == set(re.findall(r"`(finetune_[a-z_]+)`", table))
