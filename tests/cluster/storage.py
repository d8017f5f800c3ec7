"""Two kinds of volumes, made before they are asked for: no provisioner runs.

`shared` (the default) is seen from every node, `node-local` only from one. All lie in the cluster's folder.
"""

import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.cluster.access import Access
from tests.cluster.commands import ClusterError

SHARED, NODE_LOCAL = "shared", "node-local"
SHARED_COUNT, LOCAL_COUNT = 60, 15
SHARED_MODES = ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"]
SIZE = "500Gi"
_DEFAULT = {"storageclass.kubernetes.io/is-default-class": "true"}
Manifest = dict[str, Any]


class Volumes:
    """The volumes of a cluster, in a folder."""

    def __init__(self, folder: Path, access: Access) -> None:
        self.folder, self.access = folder, access

    def add(self, nodes: Iterable[str]) -> None:
        """Make the classes, and volumes until as many are free as there should be."""
        free = [
            _place(volume) for volume in self._all() if _phase(volume) in ("Available", "Pending")
        ]
        wanted: list[Manifest] = []
        for _ in range(SHARED_COUNT - free.count(SHARED)):
            name, path = self._new(SHARED)
            wanted.append(_shared(name, path))
        for node in nodes:
            for _ in range(LOCAL_COUNT - free.count(node)):
                name, path = self._new(node)
                wanted.append(_node_local(name, path, node=node))
        if wanted:
            self.access.apply(*_classes(), *wanted)

    def remove_released(self) -> None:
        """Remove the volumes, and what is in them, whose claims are gone."""
        gone = [volume for volume in self._all() if _phase(volume) in ("Released", "Failed")]
        if gone:
            names = [volume["metadata"]["name"] for volume in gone]
            self.access.kubectl("delete", "persistentvolume", *names, "--wait=false")
        for volume in gone:
            shutil.rmtree(_path(volume), ignore_errors=True)

    def path(self, namespace: str, claim: str) -> Path:
        """Return the folder behind a bound claim.

        Raises:
            ClusterError: The claim is not bound.
        """
        found = self.access.get("persistentvolumeclaim", claim, f"--namespace={namespace}")
        name = found["spec"].get("volumeName")
        if not name:
            raise ClusterError(
                f"claim {namespace}/{claim} is {found['status'].get('phase')}, not bound"
            )
        return _path(self.access.get("persistentvolume", name))

    def _all(self) -> list[Manifest]:
        found = self.access.get("persistentvolume", "--selector=finetune-test")
        return list(found)

    def _new(self, place: str) -> tuple[str, Path]:
        name = f"{place}-{uuid.uuid4().hex[:8]}"
        path = self.folder / name
        path.mkdir(parents=True)
        path.chmod(0o777)  # pods write as whatever user they are
        return name, path


def _phase(volume: Manifest) -> str:
    return str(volume.get("status", {}).get("phase", "Pending"))


def _place(volume: Manifest) -> str:
    return str(volume["metadata"]["labels"]["finetune-test"])


def _path(volume: Manifest) -> Path:
    spec = volume["spec"]
    return Path((spec.get("hostPath") or spec["local"])["path"])


def _classes() -> list[Manifest]:
    return [
        _class(SHARED, binding="Immediate", annotations=_DEFAULT),
        _class(NODE_LOCAL, binding="WaitForFirstConsumer", annotations={}),
    ]


def _class(name: str, *, binding: str, annotations: dict[str, str]) -> Manifest:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name, "annotations": annotations},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": binding,
    }


def _volume(name: str, *, place: str, kind: str, spec: Manifest) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "labels": {"finetune-test": place}},
        "spec": {
            "capacity": {"storage": SIZE},
            "storageClassName": kind,
            "persistentVolumeReclaimPolicy": "Retain",
            **spec,
        },
    }


def _shared(name: str, path: Path) -> Manifest:
    spec = {"accessModes": SHARED_MODES, "hostPath": {"path": str(path), "type": ""}}
    return _volume(name, place=SHARED, kind=SHARED, spec=spec)


def _node_local(name: str, path: Path, *, node: str) -> Manifest:
    term = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "local": {"path": str(path)},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [term]}]}},
    }
    return _volume(name, place=node, kind=NODE_LOCAL, spec=spec)
