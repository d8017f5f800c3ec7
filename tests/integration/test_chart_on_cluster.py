"""The chart on a cluster: installed, upgraded with values of earlier releases, uninstalled."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from finetune_api.crd import crd_files
from tests.charts import CHART, Helm, Manifest, each_old, helm
from tests.cluster import Access
from tests.cluster.commands import ClusterError

__all__ = ["helm"]


@each_old
def test_install_upgrade_and_uninstall(
    helm: Helm, cluster: Access, namespace: str, old: Path
) -> None:
    first = {"replicas": 0, "namespaces": [namespace]}
    given = yaml.safe_load(old.read_text("utf-8"))
    # No pods: their image is nobody's. No ServiceMonitor: its CRD is not there.
    given |= {**first, "serviceMonitor": {"enabled": False}, "crds": {"install": True}}
    with released(helm, cluster, namespace, values=first) as release:
        notes = helm.done("upgrade", *release, values=given, on=cluster)
        assert "replicas is 0" in notes
        rights_end_at(namespace, cluster=cluster, account=given["fullnameOverride"])
        name = f"deployment/{given['fullnameOverride']}"
        deployment = cluster.get(name, f"--namespace={namespace}")
        taken_as_restricted(cluster, deployment["spec"]["template"]["spec"], namespace)
    assert not made_by_helm(cluster, namespace)
    for name in crd_files():
        crd = cluster.get("crd", f"{name.removesuffix('.yaml')}.finetune.dev")
        assert "deletionTimestamp" not in crd["metadata"]


@contextmanager
def released(
    helm: Helm, cluster: Access, namespace: str, *, values: Manifest
) -> Iterator[tuple[str, ...]]:
    """Install the chart, hand out the arguments of an upgrade, uninstall it."""
    # CRDs that another test made are taken over.
    release = (f"of-{namespace}", str(CHART), f"--namespace={namespace}", "--take-ownership")
    try:
        helm.done("install", *release, values=values, on=cluster)
        assert made_by_helm(cluster, namespace)
        yield release
    finally:
        helm.run("uninstall", release[0], release[2], "--wait", on=cluster)


def made_by_helm(cluster: Access, namespace: str) -> list[str]:
    """Return the names of what releases of a namespace have made, the CRDs aside."""
    ours = "--selector=app.kubernetes.io/managed-by=Helm"
    inside = (
        "deployments,configmaps,serviceaccounts,services,poddisruptionbudgets,roles,rolebindings"
    )
    found = [*cluster.get(inside, ours, f"--namespace={namespace}")]
    found += [
        item
        for item in cluster.get("clusterroles,clusterrolebindings", ours)
        if item["metadata"]["name"].startswith(f"{namespace}:")
    ]
    return [f"{item['kind']}/{item['metadata']['name']}" for item in found]


def rights_end_at(namespace: str, *, cluster: Access, account: str) -> None:
    """Let the cluster judge what the account may do, and where that ends."""

    def may(verb: str, resource: str, where: str) -> bool:
        whoever = f"--as=system:serviceaccount:{namespace}:{account}"
        asked = ("auth", "can-i", verb, resource, whoever, f"--namespace={where}")
        try:
            return cluster.kubectl(*asked).strip() == "yes"
        except ClusterError as error:
            if not str(error).rstrip().endswith("no"):
                raise
            return False

    assert may("create", "jobs.batch", namespace)
    assert may("update", "leases.coordination.k8s.io", namespace)
    assert not may("create", "jobs.batch", "default")
    assert not may("get", "secrets", namespace)


def taken_as_restricted(cluster: Access, spec: Manifest, namespace: str) -> None:
    """Let admission judge the pod: the namespace takes restricted ones only."""
    metadata = {"name": "probe", "namespace": namespace}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    create = ("create", "--dry-run=server", "--filename=-")
    cluster.kubectl(*create, input=json.dumps(pod))
    spec["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    with pytest.raises(ClusterError, match="restricted"):
        cluster.kubectl(*create, input=json.dumps(pod))
