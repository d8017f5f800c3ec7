"""The test cluster does what other tests rely on."""

import json
import os
import signal
from typing import Any

import pytest

from tests.cluster import Access, Cluster, ClusterError
from tests.cluster.commands import wait_until
from tests.cluster.images import BASE, base_image
from tests.cluster.processes import all_ids, command_of

pytestmark = pytest.mark.alone

# A number that no other process of this machine sleeps for.
SLEEP = ("sleep", f"1000{os.getpid()}")
# A service refuses until each node has heard of its first ready pod.
FETCH = """
import sys, time, urllib.request
for attempt in range(50):
    try:
        sys.exit(print(urllib.request.urlopen(sys.argv[1], timeout=2).status))
    except OSError as error:
        print(error, file=sys.stderr)
        time.sleep(0.2)
sys.exit(1)
"""
SECURE_POD = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
SECURE = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def pod(name: str, *command: str, **spec: Any) -> dict[str, Any]:
    """Return a pod that a restricted namespace takes."""
    container: dict[str, Any] = {
        "name": "main",
        "image": BASE,
        "imagePullPolicy": "Never",
        "command": list(command),
        "securityContext": SECURE,
    }
    container["volumeMounts"] = [
        {"name": volume["name"], "mountPath": f"/{volume['name']}"}
        for volume in spec.get("volumes", [])
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "securityContext": SECURE_POD,
            "containers": [container],
            **spec,
        },
    }


def claim(name: str, *, mode: str, kind: str | None = None) -> dict[str, Any]:
    """Return a claim; without a class it takes the default one."""
    spec: dict[str, Any] = {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {**spec, **({"storageClassName": kind} if kind else {})},
    }


def web_server(node: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a pod on a node, and the service before it."""
    server = pod(node, "python3", "-m", "http.server", "--directory", "/etc", nodeName=node)
    server["metadata"]["labels"] = {"app": node}
    probe = {"tcpSocket": {"port": 8000}, "periodSeconds": 1}
    server["spec"]["containers"][0]["readinessProbe"] = probe
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        # Not the pod's own name, which the pod takes for itself.
        "metadata": {"name": f"on-{node}"},
        "spec": {"selector": {"app": node}, "ports": [{"port": 80, "targetPort": 8000}]},
    }
    return server, service


def create(cluster: Access, namespace: str, *manifests: dict[str, Any]) -> None:
    """Create objects in a namespace."""
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
    cluster.kubectl("create", "--filename=-", f"--namespace={namespace}", input=listed)


def wait_for(cluster: Access, namespace: str, what: str, condition: str) -> None:
    """Wait for a condition of an object, as `kubectl wait` has it."""
    cluster.kubectl("wait", what, f"--for={condition}", f"--namespace={namespace}", "--timeout=60s")


def is_shim_of(state: str, command: list[str]) -> bool:
    """Return whether a process holds a container of a cluster."""
    return "containerd-shim" in " ".join(command[:1]) and state in " ".join(command)


@pytest.fixture
def machine_cluster(own_cluster: Cluster) -> Cluster:
    """Return this machine's cluster with the base image on both nodes."""
    own_cluster.load_image(base_image())
    return own_cluster


def test_restricted_pods_run_with_volumes_and_names(
    machine_cluster: Cluster, namespace: str
) -> None:
    mounted = [
        {"name": name, "persistentVolumeClaim": {"claimName": name}}
        for name in ("everywhere", "here")
    ]
    program = (
        "import os, socket; open('/everywhere/file', 'w').write('written'); open('/here/file', 'w').close(); "
        "print(os.getuid(), socket.gethostbyname('kubernetes.default.svc.cluster.local'))"
    )
    create(
        machine_cluster, namespace,
        claim("everywhere", mode="ReadWriteOnce"),
        claim("here", mode="ReadWriteOnce", kind="node-local"),
        pod("writer", "python3", "-c", program, volumes=mounted, nodeSelector={"kubernetes.io/hostname": "node-1"}),
    )  # fmt: skip
    wait_for(machine_cluster, namespace, "pod/writer", "jsonpath={.status.phase}=Succeeded")
    assert machine_cluster.kubectl("logs", "writer", "-n", namespace).split() == [
        "1000",
        "10.214.0.1",
    ]
    assert (machine_cluster.volume_path(namespace, "everywhere") / "file").read_text() == "written"
    local = machine_cluster.get("pvc", "here", "-n", namespace)["spec"]["volumeName"]
    affinity = machine_cluster.get("pv", local)["spec"]["nodeAffinity"]
    assert "node-1" in json.dumps(affinity)


def test_pods_reach_services_on_their_own_and_other_nodes(
    machine_cluster: Cluster, namespace: str
) -> None:
    for node in ("node-0", "node-1"):
        create(machine_cluster, namespace, *web_server(node))
    for node in ("node-0", "node-1"):
        wait_for(machine_cluster, namespace, f"pod/{node}", "condition=Ready")
    for client in ("node-0", "node-1"):
        for served in ("node-0", "node-1"):
            words = [
                "exec",
                client,
                "-n",
                namespace,
                "--",
                "python3",
                "-c",
                FETCH,
                f"http://on-{served}/hostname",
            ]
            assert machine_cluster.kubectl(*words).strip() == "200", (client, served)


def test_pods_that_are_not_restricted_are_refused(cluster: Access, namespace: str) -> None:
    loose = pod("loose", "true")
    loose["spec"]["containers"][0]["securityContext"] = {}
    with pytest.raises(ClusterError, match="violates PodSecurity"):
        create(cluster, namespace, loose)


def test_requests_are_logged_with_their_user(own_cluster: Cluster, namespace: str) -> None:
    kubeconfig = own_cluster.user("anna", ("testers",))
    with pytest.raises(ClusterError, match='User "anna" cannot list'):
        Access(kubeconfig).kubectl("get", "pods", f"--namespace={namespace}")
    seen = [json.loads(line) for line in own_cluster.audit_log.read_text().splitlines()]
    mine = [event for event in seen if event["user"]["username"] == "anna" and "objectRef" in event]
    assert {(event["verb"], event["objectRef"]["resource"]) for event in mine} == {("list", "pods")}


def test_a_stopped_node_is_lost_and_comes_back(machine_cluster: Cluster, namespace: str) -> None:
    machine_cluster.add_node(2)
    # Tests beside this one must not come to a node that is about to be lost.
    machine_cluster.kubectl(
        "taint", "node", "node-2", "for-one-test=true:NoSchedule", "--overwrite"
    )
    machine_cluster.load_image(BASE, [2])
    create(machine_cluster, namespace, pod("stays", *SLEEP, nodeName="node-2"))
    wait_for(machine_cluster, namespace, "pod/stays", "condition=Ready")
    running = [pid for pid in all_ids() if command_of(pid) == [*SLEEP]]
    machine_cluster.stop_node(2)
    assert running
    assert not any(command_of(pid) for pid in running)
    wait_for(machine_cluster, "default", "node/node-2", "condition=Ready=Unknown")
    wait_for(machine_cluster, namespace, "pod/stays", "jsonpath={.metadata.deletionTimestamp}")
    machine_cluster.restart_node(2)
    wait_for(machine_cluster, namespace, "pod/stays", "delete")
    machine_cluster.remove_node(2)
    assert machine_cluster.nodes == ["node-0", "node-1"]


@pytest.mark.nightly
def test_the_api_server_can_be_away(own_cluster: Cluster) -> None:
    own_cluster.stop_api_server()
    with pytest.raises(ClusterError, match="refused"):
        own_cluster.kubectl("get", "nodes")
    own_cluster.start_api_server()
    own_cluster.wait_ready("node-0", "node-1")


@pytest.mark.nightly
def test_it_starts_on_the_remains_of_a_dead_one(machine_cluster: Cluster, namespace: str) -> None:
    create(machine_cluster, namespace, pod("stays", *SLEEP))
    wait_for(machine_cluster, namespace, "pod/stays", "condition=Ready")
    state, processes = str(machine_cluster.state), machine_cluster.processes
    mine = [pid for name in processes.names() if (pid := processes.pid(name))]
    mine += [pid for pid in all_ids() if is_shim_of(state, command_of(pid))]
    for pid in mine:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(command_of(pid) for pid in mine), what="all ended")
    machine_cluster.start()
    machine_cluster.load_image(BASE)
    assert machine_cluster.nodes == ["node-0", "node-1"]
    assert not [pid for pid in all_ids() if command_of(pid) == [*SLEEP]]
    create(machine_cluster, "default", pod("again", "true"))
    wait_for(machine_cluster, "default", "pod/again", "jsonpath={.status.phase}=Succeeded")
