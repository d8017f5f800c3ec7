"""Operators as processes of this machine, with the rights of their ServiceAccount and no others."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from finetune_operator.permissions import AT_HOME, CLUSTER_WIDE, IN_NAMESPACES
from tests.cluster import Access
from tests.e2e.images import PREPARE, TRAINER

ACCOUNT = "finetune-operator"
READY_SECONDS = 40.0


def settings(home: str, **more: Any) -> dict[str, Any]:
    """Return the settings of an operator under test."""
    return {
        "images": {"trainer": TRAINER, "prepare": PREPARE, "pullPolicy": "Never"},
        "lease": {"namespace": home, "name": "finetune-operator"},
        "healthPort": 0,
        "metricsPort": 0,
        **more,
    }


def grant(cluster: Access, home: str) -> str:
    """Give an account in a namespace the operator's rights; return a token of it."""
    subject = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": home}
    cluster.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount",
         "metadata": {"name": ACCOUNT, "namespace": home}},
        _role("ClusterRole", f"finetune-{home}", [*IN_NAMESPACES, *CLUSTER_WIDE]),
        _binding("ClusterRole", f"finetune-{home}", subject),
        _role("Role", "finetune-home", AT_HOME, namespace=home),
        _binding("Role", "finetune-home", subject, namespace=home),
    )  # fmt: skip
    return cluster.kubectl("create", "token", ACCOUNT, "-n", home, "--duration=10h").strip()


def withdraw(cluster: Access, home: str) -> None:
    """Take the rights of all namespaces back."""
    for kind in ("clusterrole", "clusterrolebinding"):
        cluster.kubectl("delete", kind, f"finetune-{home}", "--ignore-not-found")


def _role(kind: str, name: str, permissions: Any, **where: str) -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": name, **where},
        "rules": [permission.rule for permission in permissions],
    }


def _binding(kind: str, name: str, subject: dict[str, str], **where: str) -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": f"{kind}Binding",
        "metadata": {"name": name, **where},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
        "subjects": [subject],
    }


@dataclass
class OperatorProcess:
    """One operator, started and ended at will."""

    folder: Path
    server: str
    certificate: str
    token: str
    settings: dict[str, Any]
    name: str = "operator-0"
    packages: str = ""
    """Folder that its code comes from; unset: this checkout's."""
    process: subprocess.Popen[bytes] | None = None
    starts: int = field(default=0)

    def start(self) -> None:
        """Start it; it leads when it can."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "settings.yaml").write_text(yaml.safe_dump(self.settings))
        (self.folder / "kubeconfig").write_text(json.dumps(self._kubeconfig()))
        environment = {
            **{k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")},
            "KUBECONFIG": str(self.folder / "kubeconfig"),
            "POD_NAME": self.name,
        }
        if self.packages:
            environment["PYTHONPATH"] = self.packages
        command = [sys.executable, "-m", "finetune_operator"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--settings", str(self.folder / "settings.yaml")],
                env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self.starts += 1

    @property
    def log(self) -> Path:
        """The log of all its processes."""
        return self.folder / f"{self.name}.log"

    def _kubeconfig(self) -> dict[str, Any]:
        cluster = {"server": self.server}
        if self.server.startswith("https"):
            cluster["certificate-authority"] = self.certificate
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": self.token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }

    def wait_until_leading(self) -> None:
        """Return when it acts."""
        until = time.monotonic() + READY_SECONDS
        while f"Leading as {self.name}" not in self.log_text():
            assert self.process is not None
            assert self.process.poll() is None, self.log_text()[-3000:]
            assert time.monotonic() < until, self.log_text()[-3000:]
            time.sleep(0.1)

    def log_text(self) -> str:
        """Return its log so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        """End it as a pod is ended."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                self.kill()
