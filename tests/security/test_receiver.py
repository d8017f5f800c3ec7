"""The receiver of progress hears the running attempt's own pod, and nobody else, and is not worn out."""

import base64
import gzip
import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from finetune_operator.permissions import SECRET
from tests.builders import a_job
from tests.cluster import Cluster
from tests.cluster.fixtures import fresh_namespace
from tests.e2e.lab import Lab, apply_crds
from tests.e2e.operators import OperatorProcess, grant, settings, withdraw
from tests.e2e.relay import free_port

AUDIENCE = "finetune-progress"
PATH = "/v1/progress"
PORT_SECONDS = 30.0
CUT_OFF_SECONDS = 25.0


@dataclass
class Door:
    """A receiver of an operator that does not lead, and a job whose attempt 2 trains."""

    lab: Lab
    host: str
    port: int
    trusted: ssl.SSLContext
    signing_key: Path

    def post(self, token: str, body: bytes = b"", **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPSConnection(
            self.host, self.port, timeout=30, context=self.trusted
        )
        try:
            given = {"Authorization": f"Bearer {token}"} if token else {}
            connection.request("POST", PATH, body or report(1), {**given, **headers})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def token(self, pod: str, audience: str = AUDIENCE) -> str:
        bound = (f"--bound-object-name={pod}", "--bound-object-kind=Pod")
        return self.lab.kubectl(
            "create", "token", "default", f"--audience={audience}", *bound
        ).strip()

    @contextmanager
    def connected(self) -> Iterator[ssl.SSLSocket]:
        plain = socket.create_connection((self.host, self.port), timeout=60)
        with self.trusted.wrap_socket(plain, server_hostname=self.host) as secured:
            yield secured


def report(sequence: int) -> bytes:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    progress = {"step": sequence, "totalSteps": 9, "sequence": sequence, "lastReportTime": now}
    return json.dumps({"progress": progress}).encode()


@pytest.fixture(scope="module")
def door(
    own_cluster_of_module: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Door]:
    cluster = own_cluster_of_module
    apply_crds(cluster)
    host = cluster.api_server.split("://")[1].split(":")[0]
    port = free_port(host)
    with fresh_namespace(cluster) as home, fresh_namespace(cluster) as name:
        lab = Lab(cluster, name)
        held = {"holderIdentity": "nobody", "leaseDurationSeconds": 3600,
                "renewTime": "2100-01-01T00:00:00.000000Z"}  # fmt: skip
        cluster.apply({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": held,
                       "metadata": {"name": "finetune-operator", "namespace": home}})  # fmt: skip
        progress = {"url": f"https://{host}:{port}", "port": port}
        process = OperatorProcess(
            tmp_path_factory.mktemp("operator"), cluster.api_server,
            str(cluster.pki.folder / "ca.crt"), grant(cluster, home),
            settings(home, progress=progress, namespaces=[name]),
        )  # fmt: skip
        try:
            train_a_job(lab)
            process.start()
            wait_for(host, port)
            secret = cluster.get("secret", SECRET, f"--namespace={home}")
            authorities = base64.b64decode(secret["data"]["ca.crt"]).decode()
            trusted = ssl.create_default_context(cadata=authorities)
            yield Door(lab, host, port, trusted, cluster.pki.folder / "sa.key")
        finally:
            process.stop()
            print(process.log_text()[-4000:])
            withdraw(cluster, home)


@pytest.fixture(scope="module")
def own_cluster_of_module(cluster: Any) -> Cluster:
    if not isinstance(cluster, Cluster):
        pytest.skip("tokens are forged with the key of an own cluster only")
    return cluster


def wait_for(host: str, port: int) -> None:
    until = time.monotonic() + PORT_SECONDS
    while True:
        try:
            socket.create_connection((host, port), timeout=1).close()
        except OSError:
            assert time.monotonic() < until, "the receiver does not listen"
            time.sleep(0.1)
        else:
            return


def train_a_job(lab: Lab) -> None:
    """Make a job whose second attempt trains, and pods of both attempts, of its preparing, of nothing."""
    job = a_job("tiny", model={"uri": "pvc://models/model"})
    lab.apply(job)
    uid = lab.get("finetunejob", "tiny")["metadata"]["uid"]
    began = "2026-01-01T00:00:00Z"
    attempts = [
        {"step": "prepare", "number": 1, "startTime": began, "endTime": began},
        {"step": "train", "number": 1, "startTime": began, "endTime": began},
        {"step": "train", "number": 2, "startTime": began},
    ]
    status = {"status": {"run": 1, "phase": "Running", "reason": "Training", "attempts": attempts}}
    lab.kubectl("patch", "ftj", "tiny", "--subresource=status", "--type=merge",
                f"--patch={json.dumps(status)}")  # fmt: skip
    for name, step, attempt in (("old", "train", 1), ("now", "train", 2), ("prep", "prepare", 1),
                                ("often", "train", 2), ("gone", "train", 2)):  # fmt: skip
        lab.apply(a_pod(name, {
            "finetune.dev/kind": "FineTuneJob", "finetune.dev/name": "tiny", "finetune.dev/uid": uid,
            "finetune.dev/run": "1", "finetune.dev/step": step, "finetune.dev/attempt": str(attempt)}))  # fmt: skip
    lab.apply(a_pod("stranger", {}))


def a_pod(name: str, marks: dict[str, str]) -> dict[str, Any]:
    security = {
        "allowPrivilegeEscalation": False, "runAsNonRoot": True, "runAsUser": 1000,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    container = {
        "name": "c",
        "image": "none:1",
        "imagePullPolicy": "Never",
        "securityContext": security,
    }
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": marks},
        "spec": {"containers": [container], "nodeSelector": {"none": "such"}},
    }  # fmt: skip


def test_the_running_attempts_pod_is_heard(door: Door) -> None:
    assert door.post(door.token("now"), report(3))[0] == 200
    there = door.lab.wait(
        "ftj", "tiny", lambda b: "progress" in b["status"], what="written", seconds=10
    )["status"]["progress"]
    assert (there["step"], there["attempt"]) == (3, 2)


def test_nobody_else_is(door: Door) -> None:
    assert door.post("")[0] == 401
    assert door.post("nonsense")[0] == 401
    assert door.post("x" * 20_000)[0] == 400
    assert door.post(door.token("now", audience="https://kubernetes.default.svc"))[0] == 401
    assert door.post(door.token("now", audience="another"))[0] == 401
    account = door.lab.kubectl("create", "token", "default", f"--audience={AUDIENCE}").strip()
    assert door.post(account)[0] == 401, "a token of no pod"
    status, said = door.post(door.token("stranger"))
    assert (status, "trains no job" in said) == (403, True)
    assert door.post(door.token("prep"))[0] == 403
    status, said = door.post(door.token("old"))
    assert (status, "attempt 1 is not" in said) == (409, True)


def test_forged_and_expired_tokens(door: Door) -> None:
    good = door.token("now")
    head, claims, signature = (decoded(part) for part in good.split("."))
    mine = ec.generate_private_key(ec.SECP256R1())
    assert door.post(signed(head, claims, mine))[0] == 401
    assert door.post(f"{good.rsplit('.', 1)[0]}.{encoded(signature[::-1])}")[0] == 401
    none = {**json.loads(head), "alg": "none"}
    assert door.post(f"{encoded(json.dumps(none).encode())}.{encoded(claims)}.")[0] == 401
    key = serialization.load_pem_private_key(door.signing_key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert door.post(signed(head, claims, key))[0] == 200, "the same signature as the server's"
    past = {**json.loads(claims), "exp": int(time.time()) - 60, "nbf": 1, "iat": 1}
    assert door.post(signed(head, json.dumps(past).encode(), key))[0] == 401
    other = json.loads(claims)
    other["kubernetes.io"]["pod"] = {"name": "now", "uid": "00000000-0000-0000-0000-000000000000"}
    assert door.post(signed(head, json.dumps(other).encode(), key))[0] in (401, 403)


def decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).decode().rstrip("=")


def signed(head: bytes, claims: bytes, key: ec.EllipticCurvePrivateKey) -> str:
    text = f"{encoded(head)}.{encoded(claims)}"
    r, s = utils.decode_dss_signature(key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{text}.{encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def test_a_deleted_pod_is_not_heard(door: Door) -> None:
    token = door.token("gone")
    assert door.post(token)[0] == 200
    door.lab.kubectl("delete", "pod", "gone", "--grace-period=0", "--force")
    until = time.monotonic() + 10
    while door.post(token)[0] == 200:
        assert time.monotonic() < until, "its token is still believed"
        time.sleep(0.6)


def test_large_bodies(door: Door) -> None:
    token = door.token("now")
    assert door.post(token, b"x" * (65 << 10))[0] == 413
    bomb = gzip.compress(b"[" * (64 << 20))
    assert len(bomb) < 128 << 10
    with_length = {"Content-Encoding": "gzip"}
    assert door.post(token, bomb[: 60 << 10], **with_length)[0] in (400, 413)
    assert door.post(token, b'{"progress": ' + b"[" * 60_000)[0] == 422
    with door.connected() as chunks:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunks.sendall(head.encode())
        try:
            for _ in range(64):
                chunks.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
            said = chunks.recv(1000)
        except (ConnectionError, ssl.SSLError):
            said = b""  # cut off before all was sent
    assert said == b"" or b" 413 " in said


def test_slow_clients_are_cut_off_and_hold_nobody_up(door: Door) -> None:
    token, started = door.token("now"), time.monotonic()
    with door.connected() as silent, door.connected() as slow, door.connected() as body:
        slow.sendall(b"POST /v1/progress HTTP/1.1\r\nHost: x\r\n")
        body.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
                     "Content-Length: 100\r\n\r\n{".encode())  # fmt: skip
        assert door.post(token)[0] == 200, "others are served meanwhile"
        assert b" 408 " in body.recv(1000)
        for each in (silent, slow):
            each.settimeout(CUT_OFF_SECONDS)
            with suppress(ConnectionError):  # aborted: cut off as well
                assert each.recv(1000) == b""
    assert time.monotonic() - started < CUT_OFF_SECONDS


def test_a_pod_that_reports_too_often(door: Door) -> None:
    token = door.token("often")
    answers = [door.post(token, report(n))[0] for n in range(1, 30)]
    assert 429 in answers
    assert door.post(door.token("now"))[0] == 200, "others are not held up by it"
