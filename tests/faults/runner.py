"""Runs a workload under a plan, watches what must hold on the way, and tells how it ended."""

import asyncio
import contextlib
import os
import re
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import orjson

from finetune_operator.cluster import controller as controllers
from finetune_operator.cluster.client import (
    BATCH,
    NETWORKING,
    ApiError,
    ApiServer,
    path_of,
    path_of_kind,
)
from finetune_operator.cluster.lease import LeaseLost
from finetune_operator.cluster.login import Login
from finetune_operator.manifests import labels
from finetune_operator.settings import ClaimDefaults, Images, Lease, Settings
from tests.faults.api import Faults, FaultyLogin
from tests.faults.kubelet import Kubelet
from tests.faults.plans import FaultPlan
from tests.faults.workloads import CROWD, WORKLOADS, Body, User

PLAN_SECONDS = 90.0
QUIET_SECONDS = 2.5
"""Longer than a watch may lag, and than an operator takes to start."""
SETTLE_SECONDS = 20.0
MASKED = {
    "startTime", "completionTime", "endTime", "lastTransitionTime", "lastReportTime",
    "runningSeconds", "observedGeneration", "uid",
}  # fmt: skip
KINDS = ("FineTuneJob", "DatasetRegistration", "ModelExport")
PROFILE = f"fault-tests-{os.getpid()}"
"""Test processes that share a cluster have one each."""


class Broken(AssertionError):
    """What must never be was."""


@dataclass
class Outcome:
    """How a plan ended."""

    state: list[str]
    writes: int
    met: list[str]
    log: list[str] = field(default_factory=list)


class Runner:
    """Runs plans, several at a time, each with an operator and a namespace of its own."""

    def __init__(self, login: Login, api: ApiServer, kubelet: Kubelet) -> None:
        self._login, self._api, self._kubelet = login, api, kubelet

    async def run(self, plan: FaultPlan) -> Outcome:
        """Run a plan to its end.

        Raises:
            Broken: an invariant did not hold, or the workload did not end; with the plan.
        """
        namespace = f"fault-{uuid.uuid4().hex[:8]}"
        workload = (WORKLOADS | CROWD)[plan.workload]
        await self._make(namespace)
        self._kubelet.scripts[namespace] = workload.script
        faults = Faults(plan.faults)
        operator = Operators(self._login, namespace, faults)
        watcher = asyncio.create_task(self._watch(namespace))
        try:
            async with asyncio.timeout(PLAN_SECONDS):
                operator.start()
                await workload.act(User(self._api, namespace))
                await self._quiet(faults, watcher)
                while await self._is_collected(namespace):
                    await asyncio.sleep(0.2)
            if watcher.done():
                watcher.result()
            return Outcome(await self._state(namespace), faults.writes, faults.met, faults.log)
        except (AssertionError, TimeoutError, ApiError) as error:
            state = "\n".join(await self._state(namespace))
            told = "\n".join(faults.log[-40:])
            raise Broken(f"{plan}: {error or type(error).__name__}\n{told}\n{state}") from error
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
            await operator.end()
            self._kubelet.scripts.pop(namespace, None)
            await self._remove(namespace)

    async def _make(self, namespace: str) -> None:
        marks = {"finetune.dev/test": PROFILE}
        body = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": namespace, "labels": marks},
        }
        await self._api.create("/api/v1/namespaces", body)
        account = path_of("serviceaccounts", namespace, "default")
        while True:
            try:
                await self._api.get(account)
            except ApiError:
                await asyncio.sleep(0.05)
            else:
                return

    async def _remove(self, namespace: str) -> None:
        with contextlib.suppress(ApiError):
            await self._api.call("DELETE", f"/api/v1/namespaces/{namespace}", body={})

    async def _quiet(self, faults: Faults, watcher: "asyncio.Task[None]") -> None:
        """Return once the operator has written nothing for a while; it must come to rest."""
        began = time.monotonic()
        while time.monotonic() - faults.last_write < QUIET_SECONDS:
            if time.monotonic() - began > SETTLE_SECONDS:
                raise Broken("it does not stop writing")
            if watcher.done():
                watcher.result()
            await asyncio.sleep(0.1)

    async def _state(self, namespace: str) -> list[str]:
        """Return all that is left, without names and times that differ between any two runs."""
        found = []
        names: dict[str, str] = {}
        for kind in KINDS:
            for body in await self._listed(path_of_kind(kind, namespace)):
                names[body["metadata"]["uid"][:8]] = body["metadata"]["name"]
                found.append({"kind": kind, "name": body["metadata"]["name"],
                              "finalizers": body["metadata"].get("finalizers", []),
                              "spec": body["spec"], "status": masked(body.get("status", {}))})  # fmt: skip
        found += [
            {"child": body["metadata"]["name"], "of": body["of"]}
            for body in await self._children(namespace)
        ]
        texts = (orjson.dumps(each, option=orjson.OPT_SORT_KEYS).decode() for each in found)
        return sorted(
            re.sub(r"-[0-9a-f]{8}(?=[-\"/])", "-uid", text).replace(namespace, "ns")
            for text in texts
        )

    async def _children(self, namespace: str) -> list[Body]:
        """Return what the operator made, with the resource that each is."""
        paths = (
            path_of("jobs", namespace, group=BATCH),
            path_of("configmaps", namespace),
            path_of("persistentvolumeclaims", namespace),
            path_of("networkpolicies", namespace, group=NETWORKING),
        )
        return [
            {**body, "of": path.rsplit("/", 1)[1]}
            for path in paths
            for body in await self._listed(path)
            if labels.UID in body["metadata"].get("labels", {})
        ]

    async def _is_collected(self, namespace: str) -> bool:
        """Tell whether the cluster's own collector is, or will be, at work."""
        listed = [await self._listed(path_of_kind(kind, namespace)) for kind in KINDS]
        there = {body["metadata"]["uid"] for bodies in listed for body in bodies}
        return any(
            body["metadata"].get("deletionTimestamp")
            or any(o["uid"] not in there for o in body["metadata"].get("ownerReferences", []))
            for body in await self._children(namespace)
        )

    async def _listed(self, path: str) -> list[Body]:
        items: list[Body] = orjson.loads(await self._api.get(path))["items"]
        return items

    async def _watch(self, namespace: str) -> None:
        """Follow Jobs and jobs; end with Broken when an invariant does not hold."""
        jobs: dict[str, Body] = {}
        done: dict[str, tuple[int, str]] = {}
        specs: dict[str, tuple[int, bytes]] = {}
        paths = (path_of("jobs", namespace, group=BATCH), path_of_kind("FineTuneJob", namespace))
        async with aclosing(self._changes(*paths)) as changes:
            async for type_, body in changes:
                meta = body["metadata"]
                if body["kind"] == "Job":
                    jobs[meta["name"]] = body
                    if type_ == "DELETED":
                        del jobs[meta["name"]]
                    _require_one_live_attempt(jobs)
                elif type_ == "DELETED":
                    done.pop(meta["uid"], None)
                else:
                    _require_finished_stays(body, done)
                    _require_spec_is_the_users(body, specs)

    async def _changes(self, *paths: str) -> AsyncIterator[tuple[str, Body]]:
        queue: asyncio.Queue[tuple[str, Body]] = asyncio.Queue()

        async def follow(path: str) -> None:
            version = orjson.loads(await self._api.get(path))["metadata"]["resourceVersion"]
            async with aclosing(self._api.watch(path, version=version)) as lines:
                async for line in lines:
                    event = orjson.loads(line)
                    if event["type"] in ("ADDED", "MODIFIED", "DELETED"):
                        queue.put_nowait((event["type"], event["object"]))

        tasks = [asyncio.create_task(follow(path)) for path in paths]
        try:
            while True:
                yield await queue.get()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class Operators:
    """One operator at a time; a killed one is followed by the next at once."""

    def __init__(self, login: Login, namespace: str, faults: Faults) -> None:
        self._login, self._namespace, self._faults = login, namespace, faults
        self._task: asyncio.Task[None] | None = None
        self._old: set[asyncio.Task[None]] = set()
        faults.crash = self._crash

    def start(self) -> None:
        number = self._faults.living
        login = FaultyLogin(
            self._login.server, self._login.tls, self._login.token, self._faults, number
        )
        # Claims of pods that are played must not take the volumes of those that are real.
        unbound = ClaimDefaults(class_name="none")
        settings = Settings(
            images=Images(trainer="none:1"), namespaces=[self._namespace],
            work=unbound, output=unbound,
            lease=Lease(namespace=self._namespace), health_port=0, metrics_port=0,
        )  # fmt: skip
        controller = controllers.Controller(login, settings, identity="operator")
        self._task = asyncio.create_task(self._run(controller))

    async def _run(self, controller: controllers.Controller) -> None:
        try:
            await controller.run()
        except* LeaseLost:
            pass  # the next look at `living` starts another

    def _crash(self) -> None:
        """Kill the operator between two of its instructions, and start the next."""
        self._faults.living += 1
        old, self._task = self._task, None
        if old is not None:
            self._old.add(old)
            asyncio.get_running_loop().call_soon(old.cancel)
        asyncio.get_running_loop().call_soon(self.start)

    async def end(self) -> None:
        self._faults.living += 1
        tasks = [*self._old, *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def masked(value: Any) -> Any:
    """Return a status without times."""
    if isinstance(value, dict):
        return {key: masked(item) for key, item in value.items() if key not in MASKED}
    if isinstance(value, list):
        # Whether a pod was seen before it ended is chance.
        kept = [i for i in value if not isinstance(i, dict) or i.get("type") != "PodsReady"]
        return [masked(item) for item in kept]
    return value


def _require_one_live_attempt(jobs: dict[str, Body]) -> None:
    live = Counter(
        (marks[labels.UID], marks[labels.STEP])
        for body in jobs.values()
        if not any(
            c["type"] in ("Complete", "Failed") and c["status"] == "True"
            for c in body["status"].get("conditions", [])
        )
        for marks in [body["metadata"]["labels"]]
        if labels.ATTEMPT in marks
    )
    if twice := [key for key, count in live.items() if count > 1]:
        raise Broken(f"two live attempts of {twice}: {sorted(jobs)}")


def _require_finished_stays(body: Body, done: dict[str, tuple[int, str]]) -> None:
    status, uid = body.get("status", {}), body["metadata"]["uid"]
    ended = any(
        c["type"] == "Finished" and c["status"] == "True" for c in status.get("conditions", [])
    )
    run, phase = status.get("run", 0), status.get("phase", "")
    if uid in done and done[uid][0] == run and (not ended or done[uid][1] != phase):
        raise Broken(f"{body['metadata']['name']} was {done[uid][1]} and is {phase}")
    if ended:
        done[uid] = (run, phase)


def _require_spec_is_the_users(body: Body, specs: dict[str, tuple[int, bytes]]) -> None:
    """Only a user's change raises the generation, and nothing else changes the spec."""
    meta, spec = body["metadata"], orjson.dumps(body["spec"], option=orjson.OPT_SORT_KEYS)
    generation, before = specs.get(meta["uid"], (0, b""))
    if generation == meta["generation"] and before != spec:
        raise Broken(f"the spec of {meta['name']} changed")
    specs[meta["uid"]] = (meta["generation"], spec)
