"""What plans become on an API server: children made once, deletions of what was looked at."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import orjson

from finetune_operator.cluster.cache import Cache
from finetune_operator.cluster.client import BATCH, NETWORKING, ApiError, ApiServer, path_of
from finetune_operator.cluster.pods import is_lost
from finetune_operator.cluster.refusals import ChildRefused, refusal
from finetune_operator.loop import Conflict, utc_now
from finetune_operator.manifests import labels, storage
from finetune_operator.manifests.clean import cleaning_job
from finetune_operator.manifests.job import config_map, job
from finetune_operator.manifests.network import network_policy
from finetune_operator.manifests.volumes import claim_of
from finetune_operator.plan import Key, StepRun
from finetune_operator.settings import Settings
from finetune_operator.steps.files import own_output_claim


class Executor:
    """Makes and removes the children of objects."""

    def __init__(
        self, api: ApiServer, cache: Cache, settings: Settings, authorities: Callable[[], str]
    ) -> None:
        """Use an API server; what is made is learnt by the copies at once."""
        self._api, self._cache, self._settings = api, cache, settings
        self._authorities = authorities

    async def create(self, run: StepRun, uid: str) -> None:
        """Make a run: claims, network policy, what its attempts share, all at once; its Job last."""
        namespace = run.owner.namespace
        frozen = config_map(run, uid, self._settings, authorities=self._authorities())
        sharing = self._once(path_of("configmaps", namespace), frozen, uid)
        shared, *_ = await _all(sharing, *self._surroundings(run, uid))
        made = job(run, uid, orjson.loads(shared))
        try:
            there = await self._once(path_of("jobs", namespace, group=BATCH), made, uid)
        except ChildRefused as refused:
            if refused.is_invalid and run.job_file.attempt == 1:
                # Nothing ran with it: what is corrected in a profile or in the settings shall count.
                await self._delete_own(path_of("configmaps", namespace, run.shared_name), uid)
            raise
        self._cache.learn_job(there)

    def _surroundings(self, run: StepRun, uid: str) -> Iterator[Coroutine[Any, Any, bytes]]:
        """Yield what makes the network policy of a run, and its claims."""
        if self._settings.network_policies:
            policies = path_of("networkpolicies", run.owner.namespace, group=NETWORKING)
            yield self._once(policies, network_policy(run, uid), uid)
        path = path_of("persistentvolumeclaims", run.owner.namespace)
        if run.work_claim and run.owner.kind == "FineTuneJob":
            yield self._once(path, storage.work_claim(run, uid, self._settings.work), uid)
        if (own := own_output_claim(run.job_file)) is not None:
            body = storage.output_claim(run, uid, own, self._settings.output)
            yield self._output_claim(path, body, run.owner.kind)

    async def _output_claim(self, path: str, body: dict[str, Any], kind: str) -> bytes:
        claim = await self._once(path, body, None)
        _require_kind(claim, kind)
        return claim

    async def _once(self, path: str, body: dict[str, Any], uid: str | None) -> bytes:
        """Create a child, or return the one that is there.

        Raises:
            ChildRefused: it is not taken, or another object's child has that name.
            Conflict: an earlier one of that name is just being removed.
        """
        kind, name = body["kind"], body["metadata"]["name"]
        try:
            return await self._api.create(path, body)
        except ApiError as error:
            if (refused := refusal(kind, name, error)) is not None:
                raise refused from error
            if error.status != 409 or error.reason not in ("AlreadyExists", ""):
                raise
        there = await self._api.get(f"{path}/{name}")
        found = orjson.loads(there)
        if uid is not None and _uid_label(found) != uid:
            why = "it exists and belongs to something else; remove it, or rename this object"
            raise ChildRefused(kind, name, why)
        if found["metadata"].get("deletionTimestamp"):
            raise Conflict(f"{kind} {name} is being removed")
        return there

    async def end(self, key: Key, uid: str, name: str, *, with_config: bool = False) -> None:
        """End a run: its pods save first, then the Job goes."""
        child = next((c for c in self._cache.jobs_of(key, uid) if c.metadata.name == name), None)
        if child is None:
            return
        shared = child.metadata.annotations.get(labels.CONFIG)
        if with_config and shared:  # first: only the Job still names it
            await self._delete_own(path_of("configmaps", key.namespace, shared), uid)
            if self._settings.network_policies:
                policy = path_of("networkpolicies", key.namespace, shared, group=NETWORKING)
                await self._delete_own(policy, uid)
        if child.metadata.deletion_timestamp is None:
            path = path_of("jobs", key.namespace, name, group=BATCH)
            await self._api.delete(path, uid=child.metadata.uid, foreground=True)

    async def remove_work(self, key: Key, uid: str, claim: str) -> None:
        """Remove the working claim."""
        await self._delete_own(path_of("persistentvolumeclaims", key.namespace, claim), uid)

    async def _found(self, path: str) -> dict[str, Any] | None:
        """Return a child as the API server has it now; None if it is gone."""
        try:
            found: dict[str, Any] = orjson.loads(await self._api.get(path))
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return found

    async def _delete_own(self, path: str, uid: str) -> None:
        """Delete a child after a look at whose it is."""
        found = await self._found(path)
        if found is not None and _uid_label(found) == uid:
            await self._api.delete(path, uid=found["metadata"]["uid"])

    async def remove_output(self, key: Key, uid: str, location: str) -> None:
        """Remove an output: with the claim that was made for it, or out of a user's claim.

        Unfinished output stays: the next object of that name takes it over.
        """
        claim = claim_of(location)
        if not claim or location.endswith(".incomplete"):
            return
        if claim == f"{key.name}-output":
            path = path_of("persistentvolumeclaims", key.namespace, claim)
            found = await self._found(path)
            if found is None:
                return
            marks = found["metadata"].get("labels", {})
            # An export and a job of one name share that claim: it goes with whom it was made for.
            if (marks.get(labels.KIND), marks.get(labels.NAME)) == (key.kind, key.name):
                await self._api.delete(path, uid=found["metadata"]["uid"])
                return
        body = cleaning_job(key, uid, location, self._settings)
        await self._once(path_of("jobs", key.namespace, group=BATCH), body, None)

    async def end_lost_pods(self, key: Key, uid: str) -> None:
        """Remove pods whose node no longer answers: only so their Job ends, and the next begins.

        Should such a pod run on behind a broken network it harms nothing: every attempt writes to
        its own folder.
        """
        for child in self._cache.jobs_of(key, uid):
            pod = self._cache.pod_of(child)
            if pod is not None and is_lost(pod, utc_now()):
                path = path_of("pods", key.namespace, pod.metadata.name)
                await self._api.delete(path, uid=pod.metadata.uid, grace_seconds=0)


async def _all(*calls: Coroutine[Any, Any, bytes]) -> list[bytes]:
    """Make calls at once, each to its end; return the answers, or raise the first failure."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return [answer for answer in answers if isinstance(answer, bytes)]


def _require_kind(claim: bytes, kind: str) -> None:
    """Refuse an output claim made for another kind: with its object the claim may go."""
    meta = orjson.loads(claim)["metadata"]
    marks = meta.get("labels", {})
    if marks.get(labels.KIND, kind) != kind:
        why = (
            f"it was made for {marks[labels.KIND]} '{marks.get(labels.NAME)}' of the same name; give"
            " this object another name, or a location of its own"
        )
        raise ChildRefused("PersistentVolumeClaim", str(meta["name"]), why)


def _uid_label(body: dict[str, Any]) -> str | None:
    found: str | None = body["metadata"].get("labels", {}).get(labels.UID)
    return found
