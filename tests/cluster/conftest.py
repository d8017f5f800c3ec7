"""The cluster's fixtures, for its own tests."""

from tests.cluster.fixtures import cluster, namespace, own_cluster

__all__ = ["cluster", "namespace", "own_cluster"]
