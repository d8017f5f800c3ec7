"""The network policies of steps, judged as networkpolicy/v1 defines them: whom they let through."""

from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from finetune_api.workerprofile import WorkerProfileSpec
from finetune_operator.manifests.job import config_map, job
from finetune_operator.manifests.network import network_policy
from finetune_operator.plan import StepRun
from finetune_operator.settings import Images, Settings
from tests.builders import a_dataset
from tests.fakes.world import World

UID = "00000000-0000-0000-0000-000000000001"


@dataclass(frozen=True)
class Peer:
    """A pod with labels in a namespace, or something outside with an address alone."""

    address: str
    labels: dict[str, str] | None = None
    namespace: dict[str, str] = field(default_factory=dict)


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}
    return all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items())


def matches(rule: dict[str, Any], peers: str, other: Peer) -> bool:
    """Tell whether a rule lets a peer through; one without peers lets all through."""
    assert set(rule) <= {peers}
    return not rule.get(peers) or any(_is(peer, other) for peer in rule[peers])


def _is(peer: dict[str, Any], other: Peer) -> bool:
    if block := peer.get("ipBlock"):
        address = ip_address(other.address)
        inside = [
            net
            for net in (block["cidr"], *block["except"])
            if address.version == ip_network(net).version and address in ip_network(net)
        ]
        return inside == [block["cidr"]]
    if other.labels is None:
        return False
    return selects(peer["namespaceSelector"], other.namespace) and selects(
        peer.get("podSelector", {}), other.labels
    )


@pytest.fixture
def run() -> StepRun:
    world = World(a_dataset())
    world.settle()
    return next(iter(world.made.values()))


def pod_labels(run: StepRun) -> dict[str, str]:
    settings = Settings(images=Images(trainer="t:1"))
    shared = config_map(run, UID, settings)
    template = job(run, UID, shared)["spec"]["template"]
    found: dict[str, str] = template["metadata"]["labels"]
    return found


def policy(run: StepRun) -> dict[str, Any]:
    spec: dict[str, Any] = network_policy(run, UID)["spec"]
    return spec


def test_it_is_of_this_steps_pods_alone(run: StepRun) -> None:
    selector = policy(run)["podSelector"]
    marks = pod_labels(run)
    assert selects(selector, marks)
    assert not selects(selector, {**marks, "finetune.dev/uid": "another"})
    assert not selects(selector, {**marks, "finetune.dev/step": "another"})
    assert not selects(selector, {"app": "database"})


def test_nobody_reaches_it(run: StepRun) -> None:
    found = policy(run)
    assert "Ingress" in found["policyTypes"]
    others = [Peer("10.0.0.7", {"app": "shell"}), Peer("203.0.113.7"),
              Peer("10.0.0.8", pod_labels(run))]  # fmt: skip
    assert not [o for o in others for rule in found["ingress"] if matches(rule, "from", o)]


REACHED = [
    Peer("10.0.0.7", {"app": "finetune-operator"}, {"kubernetes.io/metadata.name": "system"}),
    Peer("10.96.0.10", {"k8s-app": "kube-dns"}),
    Peer("203.0.113.7"),
    Peer("10.20.30.40"),
    Peer("2001:db8::1"),
    Peer("169.254.20.10"),  # a node's own DNS cache
]
METADATA = [Peer("169.254.169.254"), Peer("100.100.100.200"), Peer("fd00:ec2::254")]


def test_it_reaches_all_but_credentials_of_nodes(run: StepRun) -> None:
    found = policy(run)
    assert "Egress" in found["policyTypes"]

    def reached(spec: dict[str, Any], other: Peer) -> bool:
        return any(matches(rule, "to", other) for rule in spec["egress"])

    assert all(reached(found, other) for other in REACHED)
    assert not any(reached(found, other) for other in METADATA)
    allowing = WorkerProfileSpec(allow_metadata_address=True)
    allowed = policy(replace(run, placement=replace(run.placement, profile=allowing)))
    assert all(reached(allowed, other) for other in (*REACHED, *METADATA))
