"""The commands that work on a Kubernetes cluster, by a kubeconfig; none of them needs the operator's code."""
