"""What a decision may look at, from the copies of a cluster; events are read where they alone tell."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import orjson
from pydantic import ValidationError

from finetune_api.contract import JobFile, Termination
from finetune_api.datasetregistration import DatasetRegistration
from finetune_api.finetunejob import FineTuneJob
from finetune_api.modelexport import ModelExport
from finetune_api.objects import Resource
from finetune_api.workerprofile import WorkerProfile
from finetune_operator.cluster.cache import JOB_NAME, Cache
from finetune_operator.cluster.client import ApiServer, path_of
from finetune_operator.cluster.events import events_of
from finetune_operator.cluster.parsed import Parsed
from finetune_operator.cluster.pods import observed_run, seconds_until_lost, waiting_of_events
from finetune_operator.cluster.records import Custom, Job, Meta, Pod
from finetune_operator.conditions import is_true, seconds_of
from finetune_operator.loop import utc_now
from finetune_operator.manifests import labels
from finetune_operator.manifests.job import JOB_KEY
from finetune_operator.plan import Key, Observed, ObservedRun, Waiting
from finetune_operator.steps import prepare, train

SETTLING_SECONDS = 4.0
"""How long a pod that is not placed is nothing to tell: claims are bound meanwhile."""
EVENTS_SECONDS = 6.0
"""How long a pod may take to start before its events are read, and how long they are believed."""
NAMESPACE_SECONDS = 60.0
KEPT = 5000

V = TypeVar("V")

log = logging.getLogger(__name__)


class Observer:
    """Reads copies; asks the API server for events of pods that do not start."""

    def __init__(
        self, api: ApiServer, cache: Cache, wake_after: Callable[[Key, float], None]
    ) -> None:
        """Use copies that others keep current."""
        self._cache, self._api, self._read = cache, api, Parsed()
        self._wake_after = wake_after
        self._told: dict[str, tuple[float, Waiting | None]] = {}
        self._recovered: dict[str, Termination] = {}
        self._first_seen: dict[str, float] = {}
        self._read_anew: dict[str, bool] = {}
        self._namespaces: dict[str, tuple[float, dict[str, str]]] = {}

    def resource(self, key: Key, record: Custom) -> Resource:
        """Return an object of its class.

        Raises:
            ValidationError: this release cannot read it.
        """
        return self._read.resource(key.kind, record)

    async def observed(self, key: Key, resource: Resource) -> Observed:
        """Return all that a decision about an object may look at."""
        datasets: dict[str, DatasetRegistration] = {}
        jobs: dict[str, FineTuneJob] = {}
        job_runs: dict[str, dict[str, ObservedRun]] = {}
        if isinstance(resource, FineTuneJob):
            for reference in [*resource.spec.datasets, *(resource.spec.eval_datasets or [])]:
                found = self._parsed(Key("DatasetRegistration", key.namespace, reference.name))
                if isinstance(found, DatasetRegistration):
                    datasets[reference.name] = found
        if isinstance(resource, ModelExport) and resource.spec.source.job_ref:
            of = Key("FineTuneJob", key.namespace, resource.spec.source.job_ref.name)
            found = self._parsed(of)
            if isinstance(found, FineTuneJob):
                jobs[of.name] = found
                job_runs[of.name] = await self._runs(of, found)
        profiles = self._profiles()
        return Observed(
            runs=await self._runs(key, resource),
            datasets=datasets,
            jobs=jobs,
            job_runs=job_runs,
            profiles=profiles,
            namespace_labels=await self._labels(key.namespace, profiles),
            predecessor_pods=self._predecessors(key, resource.metadata.uid),
        )

    def _predecessors(self, key: Key, uid: str) -> tuple[str, ...]:
        """Return the pods of an earlier object of this name that have not ended."""
        return tuple(
            pod.metadata.name
            for pod in self._cache.pods_of_name(key)
            if pod.metadata.labels.get(labels.UID) != uid
            and pod.status.phase not in ("Succeeded", "Failed")
        )

    def _parsed(self, key: Key) -> Resource | None:
        """Return an object that can be read; one that cannot says so itself."""
        record = self._cache.custom(key)
        try:
            return None if record is None else self.resource(key, record)
        except ValidationError:
            return None

    def _profiles(self) -> dict[str, WorkerProfile]:
        """Return the profiles that can be read."""
        found = {}
        for (_, name), record in self._cache.profiles.objects.items():
            try:
                found[name] = self._read.profile(record)
            except ValidationError as error:
                log.warning("WorkerProfile %s cannot be read: %s", name, error)
        return found

    async def _labels(self, namespace: str, profiles: dict[str, WorkerProfile]) -> dict[str, str]:
        """Return a namespace's labels, where a profile asks for them; not older than a minute."""
        if all(profile.spec.namespace_selector is None for profile in profiles.values()):
            return {}
        at, found = self._namespaces.get(namespace, (-NAMESPACE_SECONDS, {}))
        if time.monotonic() - at >= NAMESPACE_SECONDS:
            content = orjson.loads(await self._api.get(f"/api/v1/namespaces/{namespace}"))
            found = content["metadata"].get("labels", {})
            self._namespaces[namespace] = (time.monotonic(), found)
            _bound(self._namespaces)
        return found

    async def _runs(self, key: Key, resource: Resource) -> dict[str, ObservedRun]:
        uid, found = resource.metadata.uid, {}
        is_finished = is_true(resource.status.conditions, "Finished")
        for child in self._cache.jobs_of(key, uid):
            if not is_finished:
                await self._require_end(child)
            pod = self._cache.pod_of(child)
            run = observed_run(child, pod, None)
            if run.is_running and run.started_at is None:
                run = await self._with_reason(key, child, pod, run)
            if pod is not None and (left := seconds_until_lost(pod, utc_now())) is not None:
                self._wake_after(key, max(left, 0.0) + 0.5)
            found[run.name] = run
        for child in self._cache.jobs_of(key, uid):
            run = found[child.metadata.name]
            if run.step == prepare.STEP and child.has("Complete") and _is_silent(run):
                known = await self._known_to_training(key, uid, child)
                found[run.name] = replace(run, termination=known) if known else run
        return found

    async def _require_end(self, child: Job) -> None:
        """Read the pod of a Job that is over if it seems not to be, once.

        Jobs and pods are copied by streams of their own, and one may be late: a pod that ended well
        would be taken for one that was lost.
        """
        meta, pod = child.metadata, self._cache.pod_of(child)
        is_over = child.has("Complete") or child.has("Failed")
        knows = pod is not None and pod.state.terminated is not None
        if not is_over or knows or meta.uid in self._read_anew:
            return
        selector = f"{JOB_NAME}={meta.name}"
        page = await self._api.get(path_of("pods", meta.namespace), labelSelector=selector)
        self._cache.learn_pods(meta.namespace, page)
        self._read_anew[meta.uid] = True
        _bound(self._read_anew)

    async def _known_to_training(self, key: Key, uid: str, child: Job) -> Termination | None:
        """Return the result of a preparing whose pod is gone, from what training was given of it."""
        wanted = (train.STEP, child.metadata.labels.get(labels.RUN))
        for other in self._cache.jobs_of(key, uid):
            marks, shared = other.metadata.labels, other.metadata.annotations.get(labels.CONFIG)
            if (marks.get(labels.STEP), marks.get(labels.RUN)) != wanted or not shared:
                continue
            if child.metadata.uid not in self._recovered:
                body = await self._api.get(path_of("configmaps", key.namespace, shared))
                file = JobFile.model_validate_json(orjson.loads(body)["data"][JOB_KEY])
                self._recovered[child.metadata.uid] = Termination(
                    exit_code=0, prepared=file.prepared
                )
                _bound(self._recovered)
            return self._recovered[child.metadata.uid]
        return None

    async def _with_reason(
        self, key: Key, child: Job, pod: Pod | None, run: ObservedRun
    ) -> ObservedRun:
        """Return a run that has not started, with what it waits for once that lasts."""
        meta = pod.metadata if pod else child.metadata
        age = self._age(meta)
        if age < SETTLING_SECONDS:
            self._wake_after(key, SETTLING_SECONDS - age + 0.5)
            return observed_run(child, pod, None, tells=False)
        if run.waiting is not None:
            return run
        return observed_run(
            child, pod, await self._told_by_events(key, meta.namespace, meta.uid, age)
        )

    def _age(self, meta: Meta) -> float:
        """Return how long a pod or Job is there; one seen for that long is not younger by any clock."""
        created = seconds_of(meta.creation_timestamp or "1970-01-01T00:00:00Z")
        first = self._first_seen.setdefault(meta.uid, time.monotonic())
        _bound(self._first_seen)
        return max(utc_now().timestamp() - created, time.monotonic() - first)

    async def _told_by_events(
        self, key: Key, namespace: str, uid: str, age: float
    ) -> Waiting | None:
        """Return what the events of a pod or Job say: a missing Secret, or a quota, shows only there."""
        if age < EVENTS_SECONDS:
            self._wake_after(key, EVENTS_SECONDS - age + 0.5)
            return None
        self._wake_after(key, EVENTS_SECONDS)
        at, waiting = self._told.get(uid, (-EVENTS_SECONDS, None))
        if time.monotonic() - at >= EVENTS_SECONDS - 1.0:
            told = await events_of(self._api, namespace, uid)
            waiting = waiting_of_events(told)
            self._told[uid] = (time.monotonic(), waiting)
            _bound(self._told)
        return waiting


def _is_silent(run: ObservedRun) -> bool:
    """Tell whether a run left no word of its result."""
    return run.termination is None or run.termination.prepared is None


def _bound(memory: dict[str, V]) -> None:
    """Forget what was noted first, when there is too much."""
    while len(memory) > KEPT:
        memory.pop(next(iter(memory)))
