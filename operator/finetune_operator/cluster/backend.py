"""Objects and Jobs of a cluster, as the loop wants them: observed from copies, executed by calls."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import orjson
from pydantic import ValidationError

from finetune_api.errors import explain
from finetune_api.meta import Metadata
from finetune_api.objects import KINDS, dump
from finetune_api.status import Failure, FailureClass, Status
from finetune_operator.cluster.cache import Cache
from finetune_operator.cluster.client import ApiError, ApiServer, path_of_kind
from finetune_operator.cluster.events import Events
from finetune_operator.cluster.execute import Executor
from finetune_operator.cluster.observe import Observer
from finetune_operator.cluster.records import Custom
from finetune_operator.cluster.refusals import ChildRefused, Refusals
from finetune_operator.cluster.status import write_status
from finetune_operator.kinds.report import failed
from finetune_operator.loop import Conflict, utc_now
from finetune_operator.plan import Event, Key, Observed, Plan, StepRun
from finetune_operator.settings import Settings
from finetune_operator.steps.naming import work_claim

FINALIZER = "finetune.dev/output"
"""On objects whose output goes with them, and on no others: it holds them until that is seen to."""


class ClusterBackend:
    """Observes and executes on an API server."""

    def __init__(
        self,
        api: ApiServer,
        cache: Cache,
        settings: Settings,
        wake_after: Callable[[Key, float], None],
        authorities: Callable[[], str] = lambda: "",
    ) -> None:
        """Use copies that others keep current; `authorities` are those of the progress receiver."""
        self._api, self._cache, self._settings = api, cache, settings
        self._refusals = Refusals(wake_after)
        self._observer = Observer(api, cache, wake_after)
        self._executor = Executor(api, cache, settings, authorities)
        self.events = Events(api)

    async def observe(self, key: Key) -> tuple[Any, Observed] | None:
        """Return an object with all a decision may look at; None if it is gone."""
        record = self._cache.custom(key)
        is_held = record is not None and FINALIZER in record.metadata.finalizers
        if record is None or (record.metadata.deletion_timestamp and not is_held):
            self._refusals.forget(key)
            return None  # the cluster collects its children
        try:
            resource = self._observer.resource(key, record)
        except ValidationError as error:
            await self._refuse(key, record, error)
            return None
        observed = await self._observer.observed(key, resource)
        return resource, replace(observed, refusals=self._refusals.of(key))

    async def _refuse(self, key: Key, record: Custom, error: ValidationError) -> None:
        """Say of a stored object that it cannot be read: its schema was another release's."""
        if (
            record.metadata.deletion_timestamp
        ):  # what cannot be read is not removed, and holds nothing
            await self._set_finalizers(key, record, add=False)
            return
        old = orjson.loads(record.status)
        generation = record.metadata.generation
        if (old.get("observedGeneration"), old.get("phase")) == (generation, "Failed"):
            return
        model = KINDS[key.kind]
        problems = "; ".join(explain(error, root=model, path=""))[:4096]
        failure = Failure(failure_class=FailureClass.USER_ERROR, message=problems, step="resolve")
        unset: Status = model.model_fields["status"].default
        await self._write(key, record, failed(unset, failure, _metadata(record), utc_now()))

    async def execute(self, key: Key, plan: Plan) -> None:
        """Do what a plan says: status first, then what stops, what starts, and the rest."""
        record = self._cache.custom(key)
        if record is None:
            return
        uid = record.metadata.uid
        await self._hold(key, record, plan)
        if plan.status is not None:
            await self._write(key, self._cache.custom(key) or record, plan.status)
        for name in plan.stops:
            await self._executor.end(key, uid, name)
        for run in plan.runs:
            await self._create(key, record, run)
        if plan.removes_work:  # before the runs: while there are any, this is decided again
            await self._executor.remove_work(key, uid, work_claim(_metadata(record)))
        for name in plan.removals:
            await self._executor.end(key, uid, name, with_config=True)
        for location in plan.removed_outputs:
            await self._remove_output(key, uid, location)
        await self._executor.end_lost_pods(key, uid)
        if plan.releases_object:
            await self._set_finalizers(key, record, add=False)
        for event in plan.events:
            self.events.tell(key, uid, event)

    async def _create(self, key: Key, record: Custom, run: StepRun) -> None:
        """Make a run; what is refused is told on the object, and tried again later."""
        meta = record.metadata
        if not self._refusals.may_try(key, run.name, meta.generation):
            return
        try:
            await self._executor.create(run, meta.uid)
        except ChildRefused as refused:
            self._refusals.note(key, run.name, meta.generation, refused)
        else:
            self._refusals.forget(key)

    async def _remove_output(self, key: Key, uid: str, location: str) -> None:
        """Remove an output; where a whole namespace goes, its claims go too."""
        try:
            await self._executor.remove_output(key, uid, location)
        except ChildRefused as refused:
            if refused.namespace_ends:
                return
            words = f"{location} cannot be removed: {refused}; or set `retain: Retain` to keep it"
            self.events.tell(key, uid, Event("OutputNotRemoved", words, is_warning=True))
            raise Conflict(words) from refused

    async def _hold(self, key: Key, record: Custom, plan: Plan) -> None:
        """Put the finalizer on an object whose output goes with it; take it off when that changes."""
        has = FINALIZER in record.metadata.finalizers
        if plan.holds_object is not None and plan.holds_object != has:
            await self._set_finalizers(key, record, add=plan.holds_object)

    async def _set_finalizers(self, key: Key, record: Custom, *, add: bool) -> None:
        others = [name for name in record.metadata.finalizers if name != FINALIZER]
        meta = record.metadata
        path = path_of_kind(key.kind, key.namespace, key.name)
        changes = {
            "uid": meta.uid,
            "resourceVersion": meta.resource_version,
            "finalizers": [*others, FINALIZER] if add else others,
        }
        with _gone_is_changed(key):
            answer = await self._api.patch(path, {"metadata": changes})
        self._cache.learn_custom(key.kind, answer)

    async def _write(self, key: Key, record: Custom, status: Status) -> None:
        """Write a status if it differs from the one that was decided on."""
        with _gone_is_changed(key):
            await write_status(self._api, self._cache, key, record, dump(status))


@contextmanager
def _gone_is_changed(key: Key) -> Iterator[None]:
    """Take an object that vanished meanwhile for one that changed: it is looked at again."""
    try:
        yield
    except ApiError as error:
        if error.status != 404:
            raise
        raise Conflict(f"{'/'.join(key)} is gone") from error


def _metadata(record: Custom) -> Metadata:
    meta = record.metadata
    return Metadata(
        name=meta.name, namespace=meta.namespace, uid=meta.uid, generation=meta.generation
    )
