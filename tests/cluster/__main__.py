"""The test cluster for people: python -m tests.cluster up|down|status|load|shell|run|prepare."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tests.cluster import Cluster, ClusterError, default_state, images, machine, tools
from tests.cluster.fixtures import used


def main() -> int:
    """Do what the command line says."""
    given = _arguments()
    cluster = Cluster(given.state or default_state())
    try:
        return _do(given, cluster)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("--state", type=Path, help="its folder, instead of the usual one")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start it, or what of it does not run")
    up.add_argument("--nodes", type=int, default=2)
    commands.add_parser("down", help="end it; images stay for the next one")
    commands.add_parser("status", help="what runs, and the nodes and pods")
    load = commands.add_parser("load", help="bring an image from buildah's store to all nodes")
    load.add_argument("image")
    commands.add_parser("shell", help="a shell whose kubectl and helm speak to it")
    run = commands.add_parser("run", help="run a command that speaks to it, and end it if it began")
    run.add_argument("program", nargs=argparse.REMAINDER)
    commands.add_parser("prepare", help="install and build everything, start nothing")
    return parser.parse_args()


def _do(given: argparse.Namespace, cluster: Cluster) -> int:
    if given.command == "up":
        cluster.start(given.nodes)
        print(f"nodes: {', '.join(cluster.nodes)}\nexport KUBECONFIG={cluster.kubeconfig}")
    elif given.command == "down":
        cluster.stop()
    elif given.command == "status":
        return _status(cluster)
    elif given.command == "load":
        cluster.load_image(given.image)
    elif given.command == "shell":
        print(
            f"kubectl and helm speak to {cluster.api_server}; `exit` leaves, the cluster stays up."
        )
        return _speak(cluster, [os.environ.get("SHELL", "/bin/bash")])
    elif given.command == "run":
        with used(cluster):
            return _speak(cluster, given.program)
    else:
        _prepare()
    return 0


def _status(cluster: Cluster) -> int:
    if not cluster.control_plane.ready():
        print("not running; start it with: python -m tests.cluster up")
        return 1
    for name in cluster.processes.names():
        pid = cluster.processes.pid(name)
        print(f"{name:20} {f'process {pid}' if pid else 'DEAD'}  {cluster.processes.log(name)}")
    print(cluster.kubectl("get", "nodes,pods", "--all-namespaces"), end="")
    return 0


def _speak(cluster: Cluster, program: list[str]) -> int:
    """Run a program whose kubectl and helm speak to the cluster."""
    paths = [str(tools.kubectl().parent), str(tools.helm().parent)]
    environment = cluster.environment()
    environment["PATH"] = os.pathsep.join([*paths, environment.get("PATH", "")])
    return subprocess.run(program, env=environment, check=False).returncode


def _prepare() -> None:
    if reason := machine.why_not():
        raise ClusterError(reason)
    machine.install_packages()
    print(tools.kubernetes(), tools.dns(), tools.helm(), sep="\n")
    print(images.pause_image(), images.base_image(), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
