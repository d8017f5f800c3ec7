"""Reports on their way into status: formats, growth, budgets, certificates."""

import asyncio
import json
import ssl
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.contract import Snapshot
from finetune_api.status import Checkpoints, CheckpointState, LossPoint, Metrics, Progress
from finetune_operator.cluster.cache import Cache
from finetune_operator.cluster.status import difference
from finetune_operator.plan import Key
from finetune_operator.progress import certificates, wire, writer
from finetune_operator.progress.budget import Budget
from finetune_operator.progress.writer import NotRunning, ProgressWriter, Reporter
from tests.builders import a_job
from tests.fakes.api_server import FakeApiServer, merged_patch

KEY = Key("FineTuneJob", "default", "tiny")
PATH = "/apis/finetune.dev/v1alpha1/namespaces/default/finetunejobs/tiny"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
TRAINING = {
    "run": 1,
    "phase": "Running",
    "reason": "Training",
    "message": "starting",
    "attempts": [
        {"step": "prepare", "number": 1, "startTime": "2026-01-01T00:00:00Z", "endTime": "x"},
        {"step": "train", "number": 1, "startTime": "2026-01-01T00:00:00Z"},
    ],
    "checkpoints": {"final": {"step": 9, "uri": "pvc://kept"}},
}


def at(seconds: float) -> str:
    return (NOW + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def report(step: int, sequence: int, seconds: float = 0.0, **changes: Any) -> Snapshot:
    return Snapshot(
        progress=Progress(
            summary=f"{step}/30", step=step, total_steps=30, sequence=sequence,
            last_report_time=at(seconds),
        ),
        metrics=Metrics(loss=f"{4 - step / 10:.4f}"),
        loss_history=[LossPoint(step=step, loss="1.0")],
        **changes,
    )  # fmt: skip


class Job:
    """One training job on a fake API server, and a writer of its progress."""

    def __init__(self, status: dict[str, Any] = TRAINING) -> None:
        self.api = FakeApiServer()
        self.cache = Cache(self.api, [], lambda key: None)  # type: ignore[arg-type]
        meta = {"name": "tiny", "namespace": "default", "uid": "u1", "generation": 1}
        body = {**a_job(), "metadata": meta, "status": status}
        self.cache.learn_custom(KEY.kind, self.api._stored(PATH, body))
        self.writer = ProgressWriter(self.api, self.cache)  # type: ignore[arg-type]

    def take(self, *reports: wire.Report, attempt: int = 1, run: int = 1, uid: str = "u1") -> None:
        async def offered() -> None:
            for each in reports:
                self.writer.offer(Reporter(KEY, uid, run, attempt), each)
                await asyncio.gather(*self.writer._writing.values())

        asyncio.run(offered())

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.api.objects[PATH]["status"]
        return found


values = st.recursive(
    st.one_of(st.booleans(), st.integers(-3, 3), st.text("ab", max_size=2)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.text("abc", max_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)
objects = st.dictionaries(st.text("abc", max_size=1), values, max_size=3)


@given(objects, objects)
def test_a_difference_makes_the_new_of_the_old(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert merged_patch(old, difference(old, new)) == new
    assert difference(new, new) == {}


def test_a_report_becomes_status() -> None:
    job = Job()
    saved = Checkpoints(latest=CheckpointState(step=3, uri="attempt-1/checkpoint-3"))
    job.take(report(5, 1, checkpoints=saved))
    status = job.status
    assert (status["progress"]["step"], status["progress"]["attempt"]) == (5, 1)
    assert (status["metrics"]["loss"], status["message"]) == ("3.5000", "step 5 of 30")
    assert status["checkpoints"]["latest"]["step"] == 3
    assert status["checkpoints"]["final"]["uri"] == "pvc://kept"


def test_seldom_but_the_first_and_the_last_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job()
    job.take(report(1, 1, 0), report(2, 2, 5), report(3, 3, 9))
    assert job.status["progress"]["step"] == 1
    monkeypatch.setattr(
        writer, "LEAST_SECONDS", 0.0
    )  # of our own clock; the trainer's is in reports
    job.take(report(4, 4, 11))
    assert job.status["progress"]["step"] == 4
    monkeypatch.undo()
    job.take(report(30, 5, 12), report(30, 6, 13))
    assert (job.status["progress"]["step"], job.status["progress"]["sequence"]) == (30, 5)
    assert len(job.api.writes) == 3


def test_never_backwards() -> None:
    job = Job()
    job.take(report(10, 7, 0), report(30, 6, 100), report(2, 7, 200))
    assert (job.status["progress"]["step"], job.status["progress"]["sequence"]) == (10, 7)


def test_another_replica_wrote_meanwhile() -> None:
    job = Job()
    newer = {**TRAINING, "progress": {"attempt": 1, "sequence": 9, "step": 9}}
    meta = job.api.objects[PATH]["metadata"]
    stored = job.api._stored(PATH, {**a_job(), "metadata": meta, "status": newer})
    job.take(report(5, 5, 100))  # on a copy that has not seen that yet
    assert job.status["progress"]["step"] == 9
    job.cache.learn_custom(KEY.kind, stored)
    job.take(report(5, 5, 100))
    assert job.status["progress"]["step"] == 9


@pytest.mark.parametrize(
    ("who", "why"),
    [
        ({"uid": "u2"}, "gone"),
        ({"run": 2}, "run 1"),
        ({"attempt": 2}, "attempt 2 is not"),
    ],
)
def test_only_the_running_attempt_is_heard(who: dict[str, Any], why: str) -> None:
    job = Job()
    with pytest.raises(NotRunning, match=why):
        job.take(report(1, 1), **who)
    ended = [{**a, "endTime": "2026-01-01T00:00:01Z"} for a in TRAINING["attempts"]]  # type: ignore[attr-defined]
    with pytest.raises(NotRunning, match="no longer"):
        Job({**TRAINING, "attempts": ended}).take(report(1, 1))
    assert job.api.writes == []


def test_a_beginning_attempt_keeps_what_is_known() -> None:
    before = {
        **TRAINING,
        "lossHistory": [{"step": 1, "loss": "4.0"}],
        "metrics": {"loss": "4.0"},
        "progress": {"attempt": 0, "sequence": 99, "step": 12},
    }
    job = Job(before)
    job.take(Snapshot(progress=Progress(step=10, total_steps=30, sequence=1, activity="Loading")))
    assert (job.status["progress"]["step"], job.status["metrics"]["loss"]) == (10, "4.0")
    assert job.status["lossHistory"] == before["lossHistory"]


def kubeflow(seconds: float, percent: int, **metrics: object) -> wire.Report:
    listed = [{"name": name, "value": str(value)} for name, value in metrics.items()]
    body = {
        "trainerStatus": {
            "progressPercentage": percent,
            "estimatedRemainingSeconds": 90,
            "metrics": listed,
            "lastUpdatedTime": (NOW + timedelta(seconds=seconds)).isoformat(),
        }
    }
    return wire.read(json.dumps(body).encode())


def test_kubeflows_format_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "LEAST_SECONDS", 0.0)
    job = Job()
    job.take(kubeflow(0, 0, total_steps=30))
    job.take(kubeflow(20, 10, total_steps=30, current_step=3, loss=2.5, learning_rate="1e-4",
                      evil="<script>", train_runtime="nan"))  # fmt: skip
    status = job.status
    assert status["progress"]["summary"] == "3/30"
    assert (status["progress"]["percent"], status["progress"]["eta"]) == (10, "1m30s")
    assert status["metrics"] == {"loss": "2.5", "learningRate": "0.0001"}
    assert status["lossHistory"] == [{"step": 3, "loss": "2.5"}]
    job.take(kubeflow(40, 100, loss=1.5), kubeflow(30, 50, current_step=15, loss=9))
    assert job.status["progress"]["summary"] == "30/30"
    assert [point["loss"] for point in job.status["lossHistory"]] == ["2.5", "1.5"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"[1]", "body"),
        (b"\xff\xfe", "body"),
        (b'{"progress": {"step": "many"}}', "progress.step"),
        (b'{"progress": {"summary": "%s"}}' % (b"x" * 65), "progress.summary"),
        (b'{"progress": {}, "lossHistory": %s}' % json.dumps([{"step": 1, "loss": "1"}] * 65).encode(),
         "lossHistory"),
        (b'{"trainerStatus": {"progressPercentage": 101, "lastUpdatedTime": "2026-01-01T00:00:00Z"}}',
         "progressPercentage"),
        (b'{"trainerStatus": {}}', "lastUpdatedTime"),
        (b'{"progress": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}", "body"),
    ],
)  # fmt: skip
def test_what_is_no_report_is_refused_by_field(body: bytes, field: str) -> None:
    with pytest.raises(wire.BadReport, match=field):
        wire.read(body)


def test_overload_sheds_reports() -> None:
    job = Job()
    job.writer._budget = Budget(0.001, 1.0)
    job.take(report(1, 1), report(30, 2))
    assert (len(job.api.writes), job.writer.shed) == (1, 1)


def test_a_budget_fills_up_again() -> None:
    budget = Budget(50.0, 2.0)
    assert [budget.take() for _ in range(3)] == [True, True, False]
    time.sleep(budget.seconds_until_next)
    assert budget.take()


def test_certificates_outlast_what_trusts_them() -> None:
    first = certificates.renewed([], NOW)
    assert certificates.renewed(first, NOW + timedelta(days=300)) == first
    later = NOW + timedelta(days=400)
    both = certificates.renewed(first, later)
    assert len(both) == 2
    # A step that began before there was a second authority still trusts what is served.
    assert certificates.signing(both, later) == first[0]
    near_the_end = first[0].ends - timedelta(days=10)
    assert certificates.signing(both, near_the_end) == both[1]
    assert certificates.renewed(both, first[0].ends + timedelta(days=1)) == [both[1]]
    assert certificates.read(
        certificates.bundle(both).encode(), certificates.keys(both).encode()
    ) == both  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        ((b"x", b""), "."),
        ((b"", b"-----BEGIN"), "0 certificates and 1 keys"),
    ],
)
def test_broken_authorities_are_refused(texts: tuple[bytes, bytes], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        certificates.read(*texts)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_served_certificate_is_trusted(host: str, tmp_path: Any) -> None:
    (authority,) = certificates.renewed([], certificates.utc_now())
    pem = tmp_path / "served.pem"
    pem.write_bytes(certificates.serving_certificate(authority, host, certificates.utc_now()))

    async def exchange() -> bytes:
        served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        served.load_cert_chain(pem)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"yes\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=served)
        port = server.sockets[0].getsockname()[1]
        trusted = ssl.create_default_context(cadata=certificates.bundle([authority]))
        reader, out = await asyncio.open_connection(
            "127.0.0.1", port, ssl=trusted, server_hostname=host
        )
        said = await reader.readline()
        out.close()
        server.close()
        return said

    assert asyncio.run(exchange()) == b"yes\n"
