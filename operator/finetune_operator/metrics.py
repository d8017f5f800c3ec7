"""What Prometheus reads: reconciles, calls, the queue, the election, the age of our copies."""

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable

import msgspec
import prometheus_client as prometheus
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from finetune_operator.cluster.cache import Cache
from finetune_operator.loop import WorkQueue
from finetune_operator.plan import Key
from finetune_operator.progress.writer import ProgressWriter

SECONDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class _Progress(msgspec.Struct, rename="camel"):
    step: int = 0
    total_steps: int = 0
    tokens_per_second: str | None = None


class _Losses(msgspec.Struct, rename="camel"):
    loss: str | None = None
    eval_loss: str | None = None


class _Status(msgspec.Struct, rename="camel"):
    phase: str = "Pending"
    restarts: int = 0
    completion_time: str | None = None
    progress: _Progress | None = None
    metrics: _Losses = msgspec.field(default_factory=_Losses)


_status = msgspec.json.Decoder(_Status).decode
JOB_SERIES = {
    "finetune_job_step": "Optimizer steps done.",
    "finetune_job_total_steps": "Optimizer steps of the run.",
    "finetune_job_tokens_per_second": "Tokens a second, by the trainer's last report.",
    "finetune_job_loss": "Loss per trained token, by the trainer's last report.",
    "finetune_job_eval_loss": "Loss of the last evaluation.",
    "finetune_job_restarts": "Attempts that failed and count.",
}
"""Of each job that has not ended, by namespace and name."""


class Metrics:
    """The metrics of one operator process."""

    def __init__(self) -> None:
        """Register them; `serve` opens the port."""
        self.registry = prometheus.CollectorRegistry()
        self._reconciles = prometheus.Histogram(
            "finetune_reconcile_seconds",
            "Time of one look at an object, by kind and outcome (done, conflict, failed).",
            ("kind", "outcome"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._calls = prometheus.Histogram(
            "finetune_api_call_seconds",
            "Time of calls to the API server, by method and status code (0: not reached).",
            ("method", "code"),
            buckets=SECONDS,
            registry=self.registry,
        )

        self._reports = prometheus.Counter(
            "finetune_progress_reports",
            "Reports of running steps, by the status code they were answered with.",
            ("code",),
            registry=self.registry,
        )

    def reconciled(self, key: Key, outcome: str, seconds: float) -> None:
        """Count one look at an object."""
        self._reconciles.labels(key.kind, outcome).observe(seconds)

    def called(self, method: str, status: int, seconds: float) -> None:
        """Count one call to the API server."""
        self._calls.labels(method, str(status)).observe(seconds)

    def reported(self, code: str) -> None:
        """Count one report of a step, by the status code it was answered with."""
        self._reports.labels(code).inc()

    def watch(
        self,
        *,
        queue: WorkQueue,
        cache: Cache,
        leads: Callable[[], bool],
        most_jobs: int,
        writer: ProgressWriter,
    ) -> None:
        """Read queue, copies, election and progress whenever Prometheus asks."""
        self.registry.register(_State(queue, cache, leads))
        self.registry.register(_Jobs(cache, leads, most_jobs, writer))

    def serve(self, port: int) -> None:
        """Serve `/metrics` on a thread of its own."""
        prometheus.start_http_server(port, registry=self.registry)


class _State(Collector):
    """Gauges that are read, not kept."""

    def __init__(self, queue: WorkQueue, cache: Cache, leads: Callable[[], bool]) -> None:
        self._queue, self._cache, self._leads = queue, cache, leads

    def collect(self) -> Iterable[Metric]:
        """Return the gauges of this moment."""
        waiting = GaugeMetricFamily(
            "finetune_queue_keys", "Objects that wait to be looked at.", value=self._queue.length
        )
        objects = GaugeMetricFamily(
            "finetune_objects", "Objects by kind and phase.", labels=("kind", "phase")
        )
        for (kind, phase), count in self._phases().items():
            objects.add_metric((kind, phase), count)
        leading = GaugeMetricFamily(
            "finetune_leader", "Whether this operator leads.", value=float(self._leads())
        )
        silent = GaugeMetricFamily(
            "finetune_watch_silent_seconds",
            "Time since anything was heard of a resource.",
            labels=("resource",),
        )
        now = time.monotonic()
        for informer in self._cache.informers:
            silent.add_metric((informer.path,), now - informer.last_heard)
        return [waiting, objects, leading, silent]

    def _phases(self) -> "Tally[tuple[str, str]]":
        return Tally(
            (kind, _status(record.status).phase)
            for kind, informers in self._cache.kinds.items()
            for informer in informers
            for record in list(informer.objects.values())
        )


class _Jobs(Collector):
    """Series of single jobs, of so many at most: told by the leader alone, so that none comes twice."""

    def __init__(
        self, cache: Cache, leads: Callable[[], bool], most: int, writer: ProgressWriter
    ) -> None:
        self._cache, self._leads, self._most, self._writer = cache, leads, most, writer

    def collect(self) -> Iterable[Metric]:
        """Return what jobs that have not ended report."""
        families = {
            name: GaugeMetricFamily(name, text, labels=("namespace", "name"))
            for name, text in JOB_SERIES.items()
        }
        left_out = 0
        for number, (labels, status) in enumerate(self._running() if self._leads() else ()):
            if number >= self._most:
                left_out += 1
                continue
            for name, value in _values(status).items():
                if value is not None:
                    families[name].add_metric(labels, float(value))
        yield from families.values()
        yield GaugeMetricFamily(
            "finetune_jobs_without_series",
            "Running jobs beyond `progress.jobsInMetrics`.",
            value=left_out,
        )
        yield CounterMetricFamily(
            "finetune_progress_writes", "Reports written.", value=self._writer.written
        )
        yield CounterMetricFamily(
            "finetune_progress_shed",
            "Reports that were due and not written, since there were too many.",
            value=self._writer.shed,
        )

    def _running(self) -> Iterable[tuple[tuple[str, str], _Status]]:
        for informer in self._cache.kinds["FineTuneJob"]:
            for name, record in sorted(list(informer.objects.items())):
                status = _status(record.status)
                if status.completion_time is None and status.progress is not None:
                    yield name, status


def _values(status: _Status) -> dict[str, float | str | None]:
    """Return a job's series by name; None where it has told nothing."""
    assert status.progress is not None
    return dict(
        zip(
            JOB_SERIES,
            (
                status.progress.step, status.progress.total_steps,
                status.progress.tokens_per_second, status.metrics.loss, status.metrics.eval_loss,
                status.restarts,
            ),
            strict=True,
        )
    )  # fmt: skip
