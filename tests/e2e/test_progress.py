"""Live progress with real pods: seen while a job runs, never backwards, and nothing is lost without it."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from finetune_operator.permissions import SECRET
from tests.cluster import Cluster
from tests.e2e.lab import Lab, has
from tests.e2e.operators import OperatorProcess
from tests.e2e.relay import Relay, free_port

STEPS = 1500
"""So many that training outlasts the ten seconds between two reports, also on a fast computer."""
LONGEST_SECONDS = 240.0


@dataclass
class Replicas:
    """Two operators whose receivers stand behind one address."""

    first: OperatorProcess
    second: OperatorProcess
    relay: Relay

    def start(self) -> None:
        self.first.start()
        self.first.wait_until_leading()
        self.second.start()


@pytest.fixture
def replicas(
    operator_process: OperatorProcess, own_cluster: Cluster, tmp_path: Path
) -> Iterator[Replicas]:
    host = own_cluster.api_server.split("://")[1].split(":")[0]
    ports = [free_port(host), free_port(host)]
    relay = Relay(host, ports)
    made = [
        replace(operator_process, folder=tmp_path / name, name=name, settings={
            **operator_process.settings, "progress": {"url": relay.url, "port": port}})
        for name, port in zip(("one", "two"), ports, strict=True)
    ]  # fmt: skip
    yield Replicas(*made, relay)
    relay.close()
    for each in made:
        each.stop()
        print(each.log_text()[-4000:])


def long_job(lab: Lab, name: str) -> dict[str, Any]:
    return lab.job(name, training={"maxSteps": STEPS}, checkpoint={"everySteps": 200})


@dataclass
class Seen:
    """What a job's status told, one entry for each new report."""

    attempt: int
    sequence: int
    step: int
    time: float


def followed(lab: Lab, name: str, disturb: Any = lambda seen: None) -> list[Seen]:
    """Return every report that stood in a job's status until it ended."""
    seen: list[Seen] = []
    until = time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < until:
        body = lab.get("finetunejob", name)
        there = body.get("status", {}).get("progress") or {}
        now = (there.get("attempt", 0), there.get("sequence", 0))
        if there and (not seen or now != (seen[-1].attempt, seen[-1].sequence)):
            seen.append(Seen(*now, there["step"], time.monotonic()))
        if has(body, "Finished"):
            assert has(body, "Succeeded"), lab.story()
            return seen
        disturb(seen)
        time.sleep(0.4)
    raise AssertionError(f"{name} did not end\n{lab.story()}")


def grows(seen: list[Seen]) -> None:
    """Reports only grow, and are seldom: those of an attempt but for its first and last."""
    numbers = [(each.attempt, each.sequence) for each in seen]
    assert numbers == sorted(numbers), seen
    assert seen[-1].step == STEPS
    pairs = itertools.pairwise(seen)
    spans = [b.time - a.time for a, b in pairs if b.step < STEPS and a.attempt == b.attempt]
    assert all(span > 8.0 for span in spans), seen
    for attempt in {each.attempt for each in seen}:
        at_the_end = [s for s in seen if s.attempt == attempt and s.step == STEPS]
        assert len(at_the_end) <= 2, "the last report, and the last word"


def was_heard(body: dict[str, Any]) -> bool:
    """Tell whether a receiver wrote of a job; its last word alone is written by who leads."""
    return "finetune-progress" in {e["manager"] for e in body["metadata"]["managedFields"]}


def test_progress_is_seen_while_a_job_runs(replicas: Replicas, lab: Lab) -> None:
    replicas.start()
    lab.apply(lab.dataset(), long_job(lab, "live"))
    seen = followed(lab, "live")
    grows(seen)
    middle = [each for each in seen if 0 < each.step < STEPS]
    assert middle, "nothing was told before the end"
    body = lab.get("ftj", "live")
    assert was_heard(body)
    assert body["status"]["message"].startswith(f"{STEPS}/{STEPS} steps")
    assert replicas.relay.taken < 10, "a step keeps its connection"


def test_replicas_take_turns_come_and_go(replicas: Replicas, lab: Lab) -> None:
    """Each has a certificate of its own; the new process of a replica has another one."""
    replicas.start()
    lab.apply(lab.dataset(), long_job(lab, "turns"))
    done: list[str] = []
    started = time.monotonic()

    def disturb(seen: list[Seen]) -> None:
        replicas.relay.cut()
        (replicas.relay.up if int(time.monotonic() - started) % 6 < 4 else replicas.relay.down)()
        if seen and not done:
            done.append("restarted")
            replicas.second.kill()
            replicas.second.start()

    grows(followed(lab, "turns", disturb))
    assert done
    assert replicas.relay.taken > 5


def test_without_a_receiver_nothing_is_lost(replicas: Replicas, lab: Lab) -> None:
    replicas.relay.down()
    replicas.start()
    lab.apply(lab.dataset(), long_job(lab, "deaf"))
    seen = followed(lab, "deaf")
    assert [each.step for each in seen] == [STEPS], "told by the last word alone"
    body = lab.get("ftj", "deaf")
    assert len(body["status"]["lossHistory"]) == 64
    assert body["status"]["metrics"]["loss"]


def test_authorities_are_lost_in_the_middle(replicas: Replicas, lab: Lab) -> None:
    """New ones are made; a run that trusts the old ones goes on unheard, the next one is heard."""
    replicas.start()
    lab.apply(lab.dataset(), long_job(lab, "unheard"))
    home = replicas.first.settings["lease"]["namespace"]
    done: list[int] = []

    def disturb(seen: list[Seen]) -> None:
        if seen and not done:
            done.append(seen[-1].step)
            lab.cluster.kubectl("delete", "secret", SECRET, f"--namespace={home}")
            for each in (replicas.first, replicas.second):
                each.kill()
                each.start()

    grows(followed(lab, "unheard", disturb))
    assert done
    lab.apply(long_job(lab, "heard"))
    followed(lab, "heard")
    assert was_heard(lab.get("ftj", "heard"))


def test_a_pod_that_is_killed_has_told_how_far_it_was(replicas: Replicas, lab: Lab) -> None:
    replicas.start()
    lab.apply(lab.dataset(), long_job(lab, "killed"))
    done: list[str] = []

    def disturb(seen: list[Seen]) -> None:
        if not done and seen and 200 < seen[-1].step < STEPS:
            done.append("killed")
            pod = lab.pod_of("killed", "train")
            lab.kubectl("delete", "pod", pod, "--grace-period=0", "--force")

    seen = followed(lab, "killed", disturb)
    grows(seen)
    assert done
    first, second = [
        a for a in lab.get("ftj", "killed")["status"]["attempts"] if a["step"] == "train"
    ]
    assert first["stepsDone"] >= 200
    assert second["resumedFromStep"] >= 200
