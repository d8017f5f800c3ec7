"""Addresses and links: a bridge on this machine, and for every node a network namespace joined to it.

Nodes have 10.212.0.x, pods 10.213.<node>.x, services 10.214.x.x. All is routed (no bridge between pods), so
that a service's reply always passes its node. This machine reaches pods and services by routes over the bridge.
"""

import json
from pathlib import Path

from tests.cluster.commands import ClusterError, run, works

BRIDGE = "ftcni0"
HOST = "10.212.0.1"
PODS, SERVICES = "10.213.0.0/16", "10.214.0.0/16"
API_SERVICE = "10.214.0.1"
MOST_NODES = 32
_OWN = ("10.212.0.0/24", PODS, SERVICES)


def address(node: int) -> str:
    """Return the address of a node."""
    return f"10.212.0.{node + 10}"


def pod_range(node: int) -> str:
    """Return the addresses of a node's pods."""
    return f"10.213.{node + 10}.0/24"


def namespace(node: int) -> Path:
    """Return the network namespace of a node."""
    return Path(f"/run/netns/ftnode-{node}")


def _inside(node: int, *command: str) -> None:
    run("nsenter", f"--net={namespace(node)}", *command)


def _pod_routes() -> list[tuple[str, str]]:
    return [(pod_range(node), address(node)) for node in range(MOST_NODES)]


def owner() -> Path | None:
    """Return the folder of the cluster that has the bridge, as is written on it.

    Raises:
        ClusterError: There is a bridge without.
    """
    if not works("ip", "link", "show", BRIDGE):
        return None
    written = json.loads(run("ip", "-json", "link", "show", BRIDGE))[0].get("ifalias")
    if not written:
        raise ClusterError(f"a link {BRIDGE} is here that no test cluster made: remove it by hand")
    return Path(written)


def make_bridge(state: Path) -> None:
    """Make the bridge and this machine's routes for the cluster of a folder, unless they are there."""
    if owner() == state:
        return
    taken = [
        route["dst"] for route in json.loads(run("ip", "-json", "route")) if route["dst"] in _OWN
    ]
    if taken:
        raise ClusterError(
            f"this machine already has routes for {taken}: the test cluster needs them"
        )
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "link", "set", BRIDGE, "alias", str(state))
    run("ip", "address", "add", f"{HOST}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    lines = [f"route add {to} via {by}" for to, by in [*_pod_routes(), (SERVICES, address(0))]]
    run("ip", "-batch", "-", given="\n".join(lines) + "\n")


def make_namespace(node: int) -> None:
    """Make the network of a node, unless it is there."""
    if namespace(node).exists():
        return
    name, link = namespace(node).name, f"ftn{node}"
    works("ip", "link", "delete", link)
    run("ip", "netns", "add", name)
    run("ip", "link", "add", link, "type", "veth", "peer", "name", "up0", "netns", name)
    run("ip", "link", "set", link, "master", BRIDGE, "up")
    _inside(node, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0")
    lines = [
        "link set lo up",
        f"address add {address(node)}/24 dev up0",
        "link set up0 up",
        f"route add default via {HOST}",
        *(f"route add {to} via {by}" for to, by in _pod_routes() if by != address(node)),
    ]
    run("nsenter", f"--net={namespace(node)}", "ip", "-batch", "-", given="\n".join(lines) + "\n")


def remove_namespace(node: int) -> None:
    """Remove the network of a node."""
    if namespace(node).exists():
        run("ip", "netns", "delete", namespace(node).name)


def remove_all() -> None:
    """Remove the bridge and every node's network."""
    for path in Path("/run/netns").glob("ftnode-*"):
        run("ip", "netns", "delete", path.name)
    if works("ip", "link", "show", BRIDGE):
        run("ip", "link", "delete", BRIDGE)
