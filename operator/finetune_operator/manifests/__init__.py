"""Step runs as Kubernetes objects. Pure: the same run gives the same manifests."""
