"""The chart's alerts, judged by Prometheus' own tool."""

import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import generate_latest

from finetune_operator.metrics import Metrics
from tests.charts import CHART
from tests.cluster import ClusterError, tools

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]  # the tool is built first

ALERTS = CHART / "files/alerts.yaml"
CASES = Path(__file__).with_name("alerts.yaml")


@pytest.fixture(scope="module")
def promtool() -> Path:
    try:
        return tools.promtool()
    except ClusterError as error:
        pytest.skip(f"promtool could not be built: {error}")


def judged(program: Path, *words: str, given: bytes | None = None) -> None:
    ended = subprocess.run([program, *words], input=given, capture_output=True, check=False)
    assert ended.returncode == 0, (ended.stdout + ended.stderr).decode()


def test_each_alert_fires_when_it_should(promtool: Path) -> None:
    judged(promtool, "check", "rules", str(ALERTS))
    judged(promtool, "test", "rules", str(CASES))
    rules = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    cases = yaml.safe_load(CASES.read_text())["tests"]
    fired = {
        case["alertname"]
        for each in cases
        for case in each["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in rules}


def test_metrics_keep_to_the_conventions(promtool: Path) -> None:
    metrics = Metrics()
    metrics.called("GET", 200, 0.1)
    judged(promtool, "check", "metrics", given=generate_latest(metrics.registry))
