"""A real Kubernetes cluster on this machine for tests: no Docker, registry or systemd."""

from tests.cluster.access import Access
from tests.cluster.cluster import Cluster, default_state
from tests.cluster.commands import ClusterError

__all__ = ["Access", "Cluster", "ClusterError", "default_state"]
