"""etcd, the API server, controller manager, scheduler and DNS: settings for quick tests."""

import http.client
import json
import ssl
from pathlib import Path

from tests.cluster import network
from tests.cluster.commands import ClusterError, wait_until
from tests.cluster.pki import Pki
from tests.cluster.processes import Processes

API_PORT = 6443
SERVER = f"https://{network.HOST}:{API_PORT}"
ETCD = "http://127.0.0.1:23790"
API_NAMES = (
    "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,"
    f"DNS:kubernetes.default.svc.cluster.local,IP:{network.API_SERVICE},IP:{network.HOST}"
)
# A node counts as lost after so long without a sign of life, and its pods are evicted soon after.
LOST_AFTER, TOLERATED_SECONDS = "8s", 3
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}
DNS_SETTINGS = """.:53 {{
 bind {host}
 errors
 kubernetes cluster.local in-addr.arpa {{
  kubeconfig {kubeconfig}
  pods insecure
  ttl 1
 }}
 cache 1
}}
"""


class ControlPlane:
    """The processes that make a cluster without nodes."""

    def __init__(self, state: Path, *, pki: Pki, processes: Processes) -> None:
        self.state, self.pki, self.processes = state, pki, processes

    @property
    def audit_log(self) -> Path:
        """Return the file with one line for each request that the API server answered."""
        return self.state / "audit.log"

    def started(self) -> bool:
        """Return whether its data are there and served."""
        return self.processes.running("etcd")

    def ready(self) -> bool:
        """Return whether the API server answers."""
        try:
            context = ssl.create_default_context(cafile=str(self.pki.authority))
            ask = http.client.HTTPSConnection(network.HOST, API_PORT, timeout=2, context=context)
            ask.request("GET", "/readyz")
            answer = ask.getresponse().status
            ask.close()
        except OSError:
            return False
        return answer == 200

    def start(self, binaries: Path, dns: Path) -> None:
        """Start what does not run."""
        self.pki.make()
        self.processes.start("etcd", self._etcd(binaries))
        self.start_api_server(binaries)
        self.processes.start("controller-manager", self._controller_manager(binaries))
        scheduler = self._kubeconfig("scheduler", "system:kube-scheduler")
        self.processes.start(
            "scheduler",
            [
                binaries / "kube-scheduler", f"--kubeconfig={scheduler}", "--leader-elect=false",
                "--secure-port=0", "--kube-api-qps=400", "--kube-api-burst=400",
            ],
        )  # fmt: skip
        kubeconfig = self._kubeconfig("admin", "admin", "system:masters")
        settings = self.state / "Corefile"
        settings.write_text(DNS_SETTINGS.format(host=network.HOST, kubeconfig=kubeconfig))
        self.processes.start("dns", [dns, "-conf", settings])

    def start_api_server(self, binaries: Path) -> None:
        """Start the API server and wait until it answers.

        Raises:
            ClusterError: It does not, with the end of its log.
        """
        self.processes.start("api-server", self._api_server(binaries))
        log = self.processes.log("api-server")

        def ready() -> bool:
            if not self.processes.running("api-server"):
                end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
                raise ClusterError(f"the API server ended at once; the end of {log}:\n{end}")
            return self.ready()

        wait_until(ready, what="the API server answers", seconds=120, log=log)

    def _kubeconfig(self, name: str, user: str, *groups: str) -> Path:
        return self.pki.kubeconfig(name, server=SERVER, user=user, groups=groups)

    def _etcd(self, binaries: Path) -> list[str | Path]:
        return [
            binaries / "etcd", f"--data-dir={self.state / 'etcd'}", "--unsafe-no-fsync",
            "--log-level=warn", f"--listen-client-urls={ETCD}", f"--advertise-client-urls={ETCD}",
            "--listen-peer-urls=http://127.0.0.1:23800",
        ]  # fmt: skip

    def _api_server(self, binaries: Path) -> list[str | Path]:
        certificate, key = self.pki.issue("api-server", user="kube-apiserver", names=API_NAMES)
        client, client_key = self.pki.issue("admin", user="admin", groups=("system:masters",))
        policy = self.state / "audit-policy.json"
        policy.write_text(json.dumps(AUDIT_POLICY))
        keys = self.pki.folder
        return [
            binaries / "kube-apiserver", f"--etcd-servers={ETCD}", f"--secure-port={API_PORT}",
            f"--bind-address={network.HOST}", f"--advertise-address={network.HOST}",
            f"--tls-cert-file={certificate}", f"--tls-private-key-file={key}",
            f"--client-ca-file={self.pki.authority}", f"--kubelet-client-certificate={client}",
            f"--kubelet-client-key={client_key}", "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-key-file={keys / 'sa.pub'}",
            f"--service-account-signing-key-file={keys / 'sa.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
            f"--service-cluster-ip-range={network.SERVICES}", "--allow-privileged=true",
            "--enable-aggregator-routing=true",
            f"--default-not-ready-toleration-seconds={TOLERATED_SECONDS}",
            f"--default-unreachable-toleration-seconds={TOLERATED_SECONDS}",
            f"--audit-policy-file={policy}", f"--audit-log-path={self.audit_log}",
        ]  # fmt: skip

    def _controller_manager(self, binaries: Path) -> list[str | Path]:
        kubeconfig = self._kubeconfig("controller-manager", "system:kube-controller-manager")
        keys, authority = self.pki.folder, self.pki.authority
        return [
            binaries / "kube-controller-manager", f"--kubeconfig={kubeconfig}",
            "--use-service-account-credentials=true", f"--root-ca-file={authority}",
            f"--service-account-private-key-file={keys / 'sa.key'}",
            f"--cluster-signing-cert-file={authority}",
            f"--cluster-signing-key-file={keys / 'ca.key'}", "--leader-elect=false",
            "--secure-port=0", "--kube-api-qps=400", "--kube-api-burst=400",
            f"--node-monitor-grace-period={LOST_AFTER}", "--node-monitor-period=1s",
            "--node-eviction-rate=10", "--secondary-node-eviction-rate=10",
        ]  # fmt: skip
