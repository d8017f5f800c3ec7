"""Objects made on an API server, and when their first Jobs are seen."""

import argparse
import asyncio
import json
import time
import uuid
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

import yaml

from finetune_operator.cluster.client import BATCH, ApiError, ApiServer, path_of

JOB = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "spec": {
        "model": {"uri": "pvc://models/model"},
        "datasets": [{"name": "rows"}],
        "workers": {"gpusPerNode": 0, "pod": {"nodeSelector": {"finetune.dev/bench": "none"}}},
    },
}
LONGEST_SECONDS = 300.0


@dataclass
class Seen:
    """When each object was sent, and when its first Job was seen."""

    sent: dict[str, float] = field(default_factory=dict)
    made: dict[str, float] = field(default_factory=dict)

    def milliseconds(self, names: list[str]) -> list[float]:
        """Return how long objects took, in the order of their names."""
        return [1000 * (self.made[name] - self.sent[name]) for name in names]


class Bench:
    """One measurement on one API server."""

    def __init__(self, api: ApiServer, arguments: argparse.Namespace) -> None:
        self.api, self._arguments = api, arguments
        group, version, self._plural = arguments.resource.split("/")
        self._group = f"/apis/{group}/{version}"
        given = arguments.manifest
        self._body = yaml.safe_load(given.read_text("utf-8")) if given else JOB
        self.seen = Seen()
        self.watching = asyncio.Event()

    async def namespace(self) -> str:
        """Make a namespace in which a job finds its data ready."""
        name = f"bench-{uuid.uuid4().hex[:8]}"
        await self.api.create(
            "/api/v1/namespaces",
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}},
        )
        if self._arguments.manifest is None:
            await self._ready_rows(name)
        return name

    async def _ready_rows(self, namespace: str) -> None:
        path = path_of("datasetregistrations", namespace, group=self._group)
        source = {"inline": '{"instruction": "a", "output": "b"}'}
        rows = {"apiVersion": JOB["apiVersion"], "kind": "DatasetRegistration",
                "metadata": {"name": "rows"}, "spec": {"source": source}}  # fmt: skip
        await self.api.create(path, rows)
        told = {"lastTransitionTime": "2026-01-01T00:00:00Z", "reason": "Validated", "message": "",
                "observedGeneration": 1}  # fmt: skip
        status = {
            "observedGeneration": 1, "phase": "Ready", "reason": "Validated", "format": "alpaca",
            "purpose": "conversation", "rows": 1, "digest": "sha256:bench", "run": 1,
            "conditions": [{**told, "type": t, "status": "True"} for t in ("Ready", "Finished", "Succeeded")],
        }  # fmt: skip
        await self.api.patch(f"{path}/rows/status", {"metadata": {}, "status": status})

    async def create(self, namespace: str, name: str) -> None:
        """Create an object and note when it was sent."""
        body = {**self._body, "metadata": {"name": name, "namespace": namespace}}
        self.seen.sent[name] = time.monotonic()
        await self.api.create(path_of(self._plural, namespace, group=self._group), body)

    async def watch(self) -> None:
        """Note the first Job of each object until cancelled."""
        path = path_of("jobs", "", group=BATCH)
        listed = json.loads(await self.api.get(path, limit="1"))
        self.watching.set()
        version = listed["metadata"]["resourceVersion"]
        while True:  # a watch ends after some minutes
            async with aclosing(self.api.watch(path, version=version)) as lines:
                async for line in lines:
                    now, event = time.monotonic(), json.loads(line)
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "ADDED":
                        continue
                    for owner in event["object"]["metadata"].get("ownerReferences", []):
                        self.seen.made.setdefault(owner["name"], now)

    async def until_made(self, names: list[str]) -> None:
        """Return when each object has a Job."""
        until = time.monotonic() + LONGEST_SECONDS
        while missing := [name for name in names if name not in self.seen.made]:
            if time.monotonic() > until:
                raise SystemExit(f"{len(missing)} of {len(names)} have no Job: {missing[:3]}")
            await asyncio.sleep(0.02)

    async def remove(self, namespace: str) -> None:
        """Remove a namespace: what is measured next shall not share the machine with that."""
        path = f"/api/v1/namespaces/{namespace}"
        await self.api.call("DELETE", path, body={})
        with suppress(ApiError):
            while True:
                await self.api.get(path)
                await asyncio.sleep(0.5)
