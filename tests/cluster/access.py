"""What tests need of any cluster: its kubeconfig and kubectl."""

import json
import os
from pathlib import Path
from typing import Any

from tests.cluster.commands import run
from tests.cluster.tools import kubectl


class Access:
    """A cluster by its kubeconfig; it may be anyone's."""

    def __init__(self, kubeconfig: Path) -> None:
        self._kubeconfig = kubeconfig

    @property
    def kubeconfig(self) -> Path:
        """Return the administrator's kubeconfig."""
        return self._kubeconfig

    def kubectl(self, *arguments: str, input: str | None = None) -> str:  # noqa: A002
        """Run kubectl as administrator and return what it printed.

        Raises:
            ClusterError: It failed; with what it said.
        """
        return run(kubectl(), *arguments, given=input, environment=self.environment(), seconds=600)

    def get(self, *arguments: str) -> Any:
        """Return objects as `kubectl get` gives them; of several, their list."""
        found = json.loads(self.kubectl("get", *arguments, "--output=json"))
        return found["items"] if found["kind"] == "List" else found

    def apply(self, *manifests: dict[str, Any]) -> None:
        """Create or change objects."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self.kubectl("apply", "--server-side", "--filename=-", input=json.dumps(listed))

    def environment(self) -> dict[str, str]:
        """Return this process's environment with KUBECONFIG, and no proxy between."""
        kept = {
            key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")
        }
        return {**kept, "KUBECONFIG": str(self.kubeconfig)}
