"""What users do to the operator: objects, what becomes of their pods, changes on the way."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson

from finetune_api.meta import Metadata
from finetune_operator.cluster.client import BATCH, ApiError, ApiServer, path_of, path_of_kind
from finetune_operator.manifests import labels
from finetune_operator.steps.naming import run_name
from tests.builders import a_dataset, a_job, an_export
from tests.faults.kubelet import HANG, Script

Body = dict[str, Any]
POLL_SECONDS = 0.1
LONGEST_SECONDS = 60.0
INLINE = {"uri": None, "inline": '{"instruction": "a", "output": "b"}'}
MODEL = {"uri": "pvc://models/model"}
NOWHERE = {"pod": {"nodeSelector": {"finetune.dev/test": "faults"}}}


class User:
    """What a user does with kubectl, in one namespace."""

    def __init__(self, api: ApiServer, namespace: str) -> None:
        self._api, self.namespace = api, namespace

    async def create(self, *bodies: Body) -> None:
        for body in bodies:
            await self._api.create(path_of_kind(body["kind"], self.namespace), body)

    async def change(self, kind: str, name: str, **spec: Any) -> None:
        await self._api.patch(path_of_kind(kind, self.namespace, name), {"spec": spec})

    async def delete(self, kind: str, name: str) -> None:
        body = {"propagationPolicy": "Background"}
        await self._api.call("DELETE", path_of_kind(kind, self.namespace, name), body=body)
        await self.until(kind, name, lambda body: body is None)

    async def get(self, kind: str, name: str) -> Body | None:
        try:
            found: Body = orjson.loads(
                await self._api.get(path_of_kind(kind, self.namespace, name))
            )
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return found

    async def hold_name(self, name: str) -> None:
        """Make a Job of somebody else's."""
        container = {"name": "c", "image": "none:1"}
        pod = {"spec": {"restartPolicy": "Never", "containers": [container]}}
        body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
                "spec": {"suspend": True, "template": pod}}  # fmt: skip
        await self._api.create(path_of("jobs", self.namespace, group=BATCH), body)

    async def free_name(self, name: str) -> None:
        """Remove it."""
        path = path_of("jobs", self.namespace, name, group=BATCH)
        await self._api.call("DELETE", path, body={"propagationPolicy": "Background"})

    async def until(self, kind: str, name: str, holds: Callable[[Body | None], bool]) -> None:
        end = time.monotonic() + LONGEST_SECONDS
        while not holds(body := await self.get(kind, name)):
            if time.monotonic() > end:
                raise AssertionError(f"{kind} {name} does not come so far: {body}")
            await asyncio.sleep(POLL_SECONDS)

    async def until_true(self, kind: str, name: str, condition: str) -> None:
        await self.until(kind, name, lambda body: body is not None and is_true(body, condition))

    async def until_training(self, name: str, attempt: int) -> None:
        def trains(body: Body | None) -> bool:
            attempts = (body or {}).get("status", {}).get("attempts", [])
            newest = [a["number"] for a in attempts if a["step"] == "train"]
            pods = any(
                c["type"] == "PodsReady" and c["status"] == "True" and body is not None
                for c in (body or {}).get("status", {}).get("conditions", [])
            )
            return newest[-1:] == [attempt] and pods

        await self.until("FineTuneJob", name, trains)


def is_true(body: Body, condition: str) -> bool:
    """Tell whether a condition of an object holds for its present spec."""
    status = body.get("status", {})
    if status.get("observedGeneration") != body["metadata"]["generation"]:
        return False
    found = status.get("conditions", [])
    return any(c["type"] == condition and c["status"] == "True" for c in found)


def job(name: str = "tiny", **spec: Any) -> Body:
    return a_job(name, model=MODEL, **{"workers": {"gpusPerNode": 0, **NOWHERE}, **spec})


def rows(name: str = "rows", **spec: Any) -> Body:
    return a_dataset(name, **{"source": INLINE, **spec})


def always(_: dict[str, str], __: int) -> str:
    return "ok"


def ends(**outcomes: list[str]) -> Script:
    """Return a script: of a step the outcome of each attempt, `ok` of all others."""

    def script(marks: dict[str, str], attempt: int) -> str:
        found = outcomes.get(marks[labels.STEP], [])
        return found[attempt - 1] if attempt <= len(found) else "ok"

    return script


def bad_at_first(marks: dict[str, str], _: int) -> str:
    """Let the rows be wrong until they are corrected."""
    is_first = (marks[labels.STEP], marks[labels.RUN]) == ("validate", "1")
    return "DATA_ERROR" if is_first else "ok"


async def finished(user: User, *names: str, kind: str = "FineTuneJob") -> None:
    for name in names:
        await user.until_true(kind, name, "Finished")


@dataclass(frozen=True)
class Workload:
    """Something to do, and what pods do meanwhile."""

    act: Callable[[User], Awaitable[None]]
    script: Script = always


async def _run(user: User) -> None:
    await user.create(rows(), job())
    await finished(user, "tiny")


async def _suspend(user: User) -> None:
    await user.create(rows(), job())
    await user.until_training("tiny", 1)
    await user.change("FineTuneJob", "tiny", suspend=True)
    await user.until_true("FineTuneJob", "tiny", "Suspended")
    await user.change("FineTuneJob", "tiny", suspend=False)
    await finished(user, "tiny")


async def _rerun(user: User) -> None:
    await _run(user)
    await user.change("FineTuneJob", "tiny", rerun=1)
    await finished(user, "tiny")


async def _delete(user: User) -> None:
    await user.create(rows(), job())
    await user.until_training("tiny", 1)
    await user.delete("FineTuneJob", "tiny")


async def _delete_with_output(user: User) -> None:
    await user.create(rows(), job(output={"retain": "Delete"}))
    await finished(user, "tiny")
    await user.delete("FineTuneJob", "tiny")


async def _reap(user: User) -> None:
    await user.create(rows(), job(ttlSecondsAfterFinished=1))
    await finished(user, "tiny")


async def _data_is_corrected(user: User) -> None:
    await user.create(job(), rows(maxSamples=3))
    await user.until(
        "DatasetRegistration",
        "rows",
        lambda b: (b or {}).get("status", {}).get("phase") == "Failed",
    )
    await user.change("DatasetRegistration", "rows", maxSamples=4)
    await finished(user, "tiny")


async def _export(user: User) -> None:
    exports = [{"name": "merged", "format": "huggingface"}]
    await user.create(rows(), job(exports=exports), an_export("beside"))
    await finished(user, "tiny")
    await finished(user, "beside", kind="ModelExport")


async def _foreign(user: User) -> None:
    """Something else has the name of the job's first child, and goes away later."""
    await user.create(job())
    await user.until("FineTuneJob", "tiny", lambda b: bool((b or {}).get("status")))
    body = await user.get("FineTuneJob", "tiny")
    assert body is not None
    meta = Metadata(name="tiny", namespace=user.namespace, uid=body["metadata"]["uid"])
    name = run_name(meta, run=1, step="prepare", attempt=1)
    await user.hold_name(name)
    await user.create(rows())
    await user.until("FineTuneJob", "tiny", lambda b: is_told(b, "ChildRefused"))
    await user.free_name(name)
    await finished(user, "tiny")


def is_told(body: Body | None, reason: str) -> bool:
    """Tell whether an object's reason or a condition's is this one."""
    status = (body or {}).get("status", {})
    return reason in [status.get("reason"), *(c["reason"] for c in status.get("conditions", []))]


def _many(count: int) -> Callable[[User], Awaitable[None]]:
    async def act(user: User) -> None:
        names = [f"job-{number}" for number in range(count)]
        await user.create(rows(), *(job(name) for name in names))
        await finished(user, *names)

    return act


WORKLOADS = {
    "run": Workload(_run),
    "restart": Workload(_run, ends(train=["INFRASTRUCTURE", "STALLED"])),
    "memory": Workload(_run, ends(train=["OUT_OF_MEMORY"])),
    "give-up": Workload(_run, ends(train=["USER_ERROR"])),
    "suspend": Workload(_suspend, ends(train=[HANG])),
    "rerun": Workload(_rerun),
    "delete": Workload(_delete, ends(train=[HANG])),
    "delete-output": Workload(_delete_with_output),
    "reap": Workload(_reap),
    "data": Workload(_data_is_corrected, bad_at_first),
    "export": Workload(_export),
    "foreign": Workload(_foreign),
    "many": Workload(_many(5)),
}
CROWD = {"crowd": Workload(_many(50))}
