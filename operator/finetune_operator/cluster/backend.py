"""Objects and Jobs of a cluster, as the loop wants them: observed from copies, executed by calls."""

import json
import logging
import time
from collections.abc import Callable
from typing import Any

import orjson
from pydantic import ValidationError

from finetune_api.base import API_VERSION
from finetune_api.datasetregistration import DatasetRegistration
from finetune_api.errors import explain
from finetune_api.finetunejob import FineTuneJob
from finetune_api.modelexport import ModelExport
from finetune_api.objects import KINDS, Resource, dump
from finetune_api.status import Failure, FailureClass, Status
from finetune_operator.cluster.cache import Cache
from finetune_operator.cluster.client import BATCH, ApiError, ApiServer, path_of, path_of_kind
from finetune_operator.cluster.events import Events
from finetune_operator.cluster.pods import (
    is_lost,
    observed_run,
    seconds_until_lost,
    waiting_of_events,
)
from finetune_operator.cluster.records import Custom, Job, Pod
from finetune_operator.kinds.report import failed
from finetune_operator.loop import utc_now
from finetune_operator.manifests import labels, storage
from finetune_operator.manifests.job import config_map, job
from finetune_operator.plan import Key, Observed, ObservedRun, Plan, StepRun, Waiting
from finetune_operator.settings import Settings
from finetune_operator.steps.files import own_output_claim
from finetune_operator.steps.naming import work_claim

UNEXPLAINED_SECONDS = 8.0
"""How long a pod may take to start before its events are read."""
EVENTS_SECONDS = 10.0
"""How long what events told is believed."""

log = logging.getLogger(__name__)


class ClusterBackend:
    """Observes and executes on an API server."""

    def __init__(
        self,
        api: ApiServer,
        cache: Cache,
        settings: Settings,
        wake_after: Callable[[Key, float], None],
    ) -> None:
        """Use copies that others keep current."""
        self._api, self._cache, self._settings = api, cache, settings
        self._events = Events(api)
        self._wake_after = wake_after
        self._told: dict[str, tuple[float, Waiting | None]] = {}

    async def observe(self, key: Key) -> tuple[Any, Observed] | None:
        """Return an object with all a decision may look at; None if it is gone."""
        record = self._cache.custom(key)
        if record is None:
            return None
        try:
            resource = parse(key.kind, record)
        except ValidationError as error:
            await self._refuse(key, record, error)
            return None
        if resource.metadata.deletion_timestamp and not self._has_finalizer(record):
            return None
        runs = await self._runs(key, record.metadata.uid)
        datasets, jobs, job_runs = await self._referred(key, resource)
        return resource, Observed(runs=runs, datasets=datasets, jobs=jobs, job_runs=job_runs)

    @staticmethod
    def _has_finalizer(record: Custom) -> bool:
        return FINALIZER in record.metadata.finalizers

    async def _refuse(self, key: Key, record: Custom, error: ValidationError) -> None:
        """Say of a stored object that it cannot be read: its schema was another one's."""
        problems = "; ".join(explain(error, root=KINDS[key.kind], path=""))
        model = KINDS[key.kind]
        status_type = model.model_fields["status"].default
        old = orjson.loads(record.status)
        if (old.get("observedGeneration"), old.get("phase")) == (
            record.metadata.generation,
            "Failed",
        ):
            return
        failure = Failure(
            failure_class=FailureClass.USER_ERROR, message=problems[:4096], step="resolve"
        )
        metadata = _metadata(record)
        await self._write_status(key, record, failed(status_type, failure, metadata, utc_now()))

    async def _referred(
        self, key: Key, resource: Resource
    ) -> tuple[
        dict[str, DatasetRegistration],
        dict[str, FineTuneJob],
        dict[str, dict[str, ObservedRun]],
    ]:
        datasets: dict[str, DatasetRegistration] = {}
        jobs: dict[str, FineTuneJob] = {}
        runs: dict[str, dict[str, ObservedRun]] = {}
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
                runs[of.name] = await self._runs(of, found.metadata.uid)
        return datasets, jobs, runs

    def _parsed(self, key: Key) -> Resource | None:
        """Return an object that can be read; one that cannot says so itself."""
        record = self._cache.custom(key)
        try:
            return None if record is None else parse(key.kind, record)
        except ValidationError:
            return None

    async def _runs(self, key: Key, uid: str) -> dict[str, ObservedRun]:
        found = {}
        for child in self._cache.jobs_of(key, uid):
            pod = self._cache.pod_of(child)
            run = observed_run(child, pod, None)
            if run.is_running and run.started_at is None and run.waiting is None:
                told = await self._told_by_events(key, child, pod)
                run = observed_run(child, pod, told)
            if pod is not None and (left := seconds_until_lost(pod, utc_now())) is not None:
                self._wake_after(key, max(left, 0.0) + 0.5)
            found[run.name] = run
        return found

    async def _told_by_events(self, key: Key, child: Job, pod: Pod | None) -> Waiting | None:
        """Return what the events of a pod that does not start say; a missing Secret shows only there."""
        meta = pod.metadata if pod else child.metadata
        at, waiting = self._told.get(meta.uid, (0.0, None))
        now = time.monotonic()
        if not at:
            self._told[meta.uid] = (now + UNEXPLAINED_SECONDS - EVENTS_SECONDS, None)
            self._wake_after(key, UNEXPLAINED_SECONDS)
            return None
        if now - at < EVENTS_SECONDS:
            return waiting
        waiting = waiting_of_events(meta.name, await self._events.of(meta.namespace, meta.uid))
        self._told[meta.uid] = (now, waiting)
        while len(self._told) > 5000:
            self._told.pop(next(iter(self._told)))
        self._wake_after(key, EVENTS_SECONDS)
        return waiting

    async def execute(self, key: Key, plan: Plan) -> None:
        """Do what a plan says: status first, then runs, then the rest."""
        record = self._cache.custom(key)
        if record is None:
            return
        if plan.status is not None:
            await self._write_status(key, record, plan.status)
        uid = record.metadata.uid
        for run in plan.runs:
            await self._create(run, uid)
        for name in plan.stops:
            await self._delete_job(key, uid, name)
        for name in plan.removals:
            await self._delete_job(key, uid, name, with_config=True)
        if plan.removes_work:
            await self._delete_work(key, record)
        await self._end_lost_pods(key, uid)
        for event in plan.events:
            await self._events.tell(key, uid, event)

    async def _write_status(self, key: Key, record: Custom, status: Status) -> None:
        """Write a status if it differs from the one that was decided on."""
        body = dump(status)
        if body == orjson.loads(record.status):
            return
        meta = record.metadata
        answer = await self._api.apply(
            f"{path_of_kind(key.kind, key.namespace, key.name)}/status",
            {
                "apiVersion": API_VERSION,
                "kind": key.kind,
                # The version: what was decided on an old copy must not be written.
                "metadata": {
                    "name": key.name,
                    "namespace": key.namespace,
                    "uid": meta.uid,
                    "resourceVersion": meta.resource_version,
                },
                "status": body,
            },
        )
        self._cache.learn_custom(key.kind, answer)

    async def _create(self, run: StepRun, uid: str) -> None:
        """Make a run: its claims and what its attempts share first, its Job last."""
        namespace = run.owner.namespace
        claims = path_of("persistentvolumeclaims", namespace)
        if run.work_claim and run.owner.kind == "FineTuneJob":
            await self._create_once(claims, storage.work_claim(run, uid, self._settings.work), uid)
        if (own := own_output_claim(run.job_file)) is not None:
            body = storage.output_claim(run, uid, own, self._settings.output)
            await self._create_once(claims, body, None)
        shared = await self._create_once(
            path_of("configmaps", namespace), config_map(run, uid, self._settings), uid
        )
        answer = await self._create_once(
            path_of("jobs", namespace, group=BATCH), job(run, uid, orjson.loads(shared)), uid
        )
        self._cache.learn_job(answer)

    async def _create_once(self, path: str, body: dict[str, Any], uid: str | None) -> bytes:
        """Create a child, or return the one that is there.

        Raises:
            ApiError: another object's child has that name.
        """
        try:
            return await self._api.create(path, body)
        except ApiError as error:
            if error.status != 409:
                raise
        name = body["metadata"]["name"]
        there = await self._api.get(f"{path}/{name}")
        if (
            uid is not None
            and orjson.loads(there)["metadata"].get("labels", {}).get(labels.UID) != uid
        ):
            raise ApiError(409, f"{path}/{name} belongs to something else; remove it")
        return there

    async def _delete_job(
        self, key: Key, uid: str, name: str, *, with_config: bool = False
    ) -> None:
        """End a run: its pods save first, then the Job goes."""
        child = next((c for c in self._cache.jobs_of(key, uid) if c.metadata.name == name), None)
        if child is None:
            return
        if child.metadata.deletion_timestamp is None:
            path = path_of("jobs", key.namespace, name, group=BATCH)
            await self._api.delete(path, uid=child.metadata.uid, foreground=True)
        shared = child.metadata.annotations.get(labels.CONFIG)
        if with_config and shared:
            await self._delete_if_ours(path_of("configmaps", key.namespace, shared), uid)

    async def _delete_if_ours(self, path: str, uid: str) -> None:
        """Delete a child after a look at whose it is."""
        try:
            found = json.loads(await self._api.get(path))["metadata"]
        except ApiError as error:
            if error.status == 404:
                return
            raise
        if found.get("labels", {}).get(labels.UID) == uid:
            await self._api.delete(path, uid=found["uid"])

    async def _delete_work(self, key: Key, record: Custom) -> None:
        name = work_claim(_metadata(record))
        path = path_of("persistentvolumeclaims", key.namespace, name)
        await self._delete_if_ours(path, record.metadata.uid)

    async def _end_lost_pods(self, key: Key, uid: str) -> None:
        """Remove pods whose node no longer answers: only so their Job ends, and the next attempt begins.

        Should such a pod run on behind a broken network it harms nothing: every attempt writes to
        its own folder.
        """
        for child in self._cache.jobs_of(key, uid):
            pod = self._cache.pod_of(child)
            if pod is not None and is_lost(pod, utc_now()):
                path = path_of("pods", key.namespace, pod.metadata.name)
                await self._api.delete(path, uid=pod.metadata.uid, grace_seconds=0)


FINALIZER = "finetune.dev/output"


def parse(kind: str, record: Custom) -> Resource:
    """Return an object of its class."""
    return KINDS[kind].model_validate_json(record.body)


def _metadata(record: Custom) -> Any:
    from finetune_api.meta import Metadata

    meta = record.metadata
    return Metadata(
        name=meta.name, namespace=meta.namespace, uid=meta.uid, generation=meta.generation
    )
