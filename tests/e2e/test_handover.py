"""How long nobody leads: after a proper end, and after none."""

import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.e2e.operators import OperatorProcess
from tests.e2e.relay import free_port

pytestmark = pytest.mark.alone

ENDED_SECONDS, KILLED_SECONDS = 3.0, 20.0
READY_SECONDS = 40.0

Pair = tuple[OperatorProcess, OperatorProcess]


@pytest.fixture
def pair(operator_process: OperatorProcess, own_cluster: Cluster, tmp_path: Path) -> Iterator[Pair]:
    """Return an operator that leads, and one that could."""
    host = own_cluster.api_server.split("://")[1].split(":")[0]
    made = []
    for name in ("one", "two"):
        port = free_port(host)
        progress = {"url": f"https://{host}:{port}", "port": port}
        given = {**operator_process.settings, "progress": progress}
        made.append(replace(operator_process, folder=tmp_path / name, name=name, settings=given))
    made[0].start()
    made[0].wait_until_leading()
    made[1].start()
    until = time.monotonic() + READY_SECONDS
    while not listens(host, made[1].settings["progress"]["port"]):  # it has read all there is
        assert time.monotonic() < until, made[1].log_text()
        time.sleep(0.1)
    yield made[0], made[1]
    for each in made:
        each.stop()
        print(each.log_text()[-2000:])


def listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [(signal.SIGTERM, ENDED_SECONDS), (signal.SIGKILL, KILLED_SECONDS)],
    ids=["ended", "killed"],
)
def test_the_other_one_leads(pair: Pair, sent: signal.Signals, seconds: float) -> None:
    first, second = pair
    assert first.process is not None
    began = time.monotonic()
    first.process.send_signal(sent)
    second.wait_until_leading()
    passed = time.monotonic() - began
    print(f"led again after {passed:.1f} s")
    assert passed <= seconds
