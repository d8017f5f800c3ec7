"""What Prometheus reads: reconciles, calls, the queue, the election, the age of our copies."""

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable

import msgspec
import prometheus_client as prometheus
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from finetune_operator.cluster.cache import Cache
from finetune_operator.loop import WorkQueue
from finetune_operator.plan import Key

SECONDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class _Phase(msgspec.Struct):
    phase: str = "Pending"


_phase = msgspec.json.Decoder(_Phase).decode


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

    def reconciled(self, key: Key, outcome: str, seconds: float) -> None:
        """Count one look at an object."""
        self._reconciles.labels(key.kind, outcome).observe(seconds)

    def called(self, method: str, status: int, seconds: float) -> None:
        """Count one call to the API server."""
        self._calls.labels(method, str(status)).observe(seconds)

    def watch(self, *, queue: WorkQueue, cache: Cache, leads: Callable[[], bool]) -> None:
        """Read queue, copies and election whenever Prometheus asks."""
        self.registry.register(_State(queue, cache, leads))

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
            (kind, _phase(record.status).phase)
            for kind, informers in self._cache.kinds.items()
            for informer in informers
            for record in list(informer.objects.values())
        )
