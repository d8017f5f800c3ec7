"""Pods without nodes: they start, end and say their last word as a workload wants it."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import orjson

from finetune_api.contract import (
    ErrorReport,
    ExitCode,
    Snapshot,
    Termination,
)
from finetune_api.lastword import encode
from finetune_api.status import Checkpoints, CheckpointState, LossPoint, Metrics, Progress
from finetune_operator.cluster.client import ApiError, ApiServer
from finetune_operator.manifests import labels
from tests.fakes.world import RESULTS

HANG = "hang"
AT = "2026-01-01T00:00:00Z"
Script = Callable[[dict[str, str], int], str]
"""From a pod's labels and its attempt to `ok`, `hang`, or the name of an exit code."""


class Kubelet:
    """Plays all pods of ours in all namespaces that a script is known for."""

    def __init__(self, api: ApiServer) -> None:
        self._api = api
        self.scripts: dict[str, Script] = {}
        self._seen: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Play until cancelled."""
        while True:
            try:
                content = orjson.loads(
                    await self._api.get("/api/v1/pods", labelSelector=labels.UID)
                )
                for pod in content["items"]:
                    self._take(pod)
                version = content["metadata"]["resourceVersion"]
                stream = self._api.watch("/api/v1/pods", version=version, selector=labels.UID)
                async with aclosing(stream) as lines:
                    async for line in lines:
                        event = orjson.loads(line)
                        if event["type"] in ("ADDED", "MODIFIED"):
                            self._take(event["object"])
            except ApiError:
                await asyncio.sleep(0.2)

    def _take(self, pod: dict[str, Any]) -> None:
        meta = pod["metadata"]
        script = self.scripts.get(meta["namespace"])
        if script is None or meta["uid"] in self._seen or meta.get("deletionTimestamp"):
            return
        self._seen.add(meta["uid"])
        task = asyncio.create_task(self._play(pod, script))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _play(self, pod: dict[str, Any], script: Script) -> None:
        marks = pod["metadata"]["labels"]
        outcome = script(marks, int(marks.get(labels.ATTEMPT, "1")))
        await self._set(pod, "Running", {"running": {"startedAt": AT}})
        if outcome == HANG:
            return
        end = _end(marks[labels.STEP], outcome)
        state = {
            "terminated": {
                "exitCode": end.exit_code, "reason": "Completed" if not end.exit_code else "Error",
                "startedAt": AT, "finishedAt": AT, "message": encode(end),
            }
        }  # fmt: skip
        await self._set(pod, "Succeeded" if end.exit_code == 0 else "Failed", state)

    async def _set(self, pod: dict[str, Any], phase: str, state: dict[str, Any]) -> None:
        meta = pod["metadata"]
        container = {
            "name": "step", "image": "none", "imageID": "", "ready": False, "restartCount": 0,
            "state": state,
        }  # fmt: skip
        conditions = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": AT}]
        status = {"phase": phase, "containerStatuses": [container], "conditions": conditions}
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/status"
        for _ in range(5):
            try:
                await self._api.patch(path, {"metadata": {"uid": meta["uid"]}, "status": status})
            except ApiError as error:
                if error.status in (404, 409, 422):  # gone, or another of that name
                    return
                await asyncio.sleep(0.1)
            else:
                return


def _end(step: str, outcome: str) -> Termination:
    if outcome != "ok":
        error = ErrorReport(message=f"{step} ended by script: {outcome}")
        return Termination(exit_code=ExitCode[outcome], error=error, snapshot=_snapshot(2))
    if step.startswith("export"):
        return Termination(exit_code=0, **RESULTS["export"])
    end = Termination(exit_code=0, **RESULTS[step])
    if step == "train":
        end = end.model_copy(update={"snapshot": _snapshot(6)})
    return end


def _snapshot(step: int) -> Snapshot:
    saved = CheckpointState(step=step, uri=f"attempt/checkpoint-{step}")
    return Snapshot(
        progress=Progress(step=step, total_steps=6, summary=f"{step}/6", sequence=1),
        metrics=Metrics(loss="1.0000"),
        loss_history=[LossPoint(step=step, loss="1.0000")],
        checkpoints=Checkpoints(latest=saved),
    )
