"""At least two thousand generated inputs: refused at admission by a field's name, or taken up and told.

An operator in this process looks at every accepted object: none may make it fail, none may stay
without a word, and then it is quiet.
"""

import asyncio
import json
import logging
import random
import time
from typing import Any

import pytest

from finetune_operator.cluster.client import ApiError, ApiServer, path_of_kind
from finetune_operator.cluster.login import Login
from finetune_operator.loop import Conflict
from finetune_operator.manifests import labels
from tests.builders import a_dataset, a_job, an_export
from tests.faults.api import Faults
from tests.faults.conftest import api_login
from tests.faults.kubelet import HANG, Kubelet
from tests.faults.runner import Operators, Runner
from tests.faults.workloads import INLINE, MODEL, NOWHERE, always
from tests.inputs.generate import Input, inputs

__all__ = ["api_login"]

EVERY_TIME = 400
LEAST = 2000
CHANGES = 100
AT_ONCE = 16
TOLD_SECONDS = 240.0
VALID: dict[str, dict[str, Any]] = {
    # What they need is not there: a job that is taken up waits, and says for what.
    "FineTuneJob": a_job(model=MODEL, workers={"gpusPerNode": 0, **NOWHERE}),
    "DatasetRegistration": a_dataset(source=INLINE),
    "ModelExport": an_export(),
}


class Walk:
    """One walk over inputs in one namespace."""

    def __init__(self, api: ApiServer, namespace: str) -> None:
        self._api, self._namespace = api, namespace
        self.refused: list[tuple[Input, str]] = []
        self.accepted: dict[tuple[str, str], Input] = {}

    async def submit(self, number: int, each: Input) -> None:
        name = f"in-{number}"
        body = {**each.body, "metadata": {"name": name}}
        try:
            await self._api.call(
                "POST", path_of_kind(each.kind, self._namespace), body=body,
                parameters={"fieldValidation": "Strict"},
            )  # fmt: skip
        except ApiError as error:
            if error.status not in (400, 413, 422):
                raise
            self.refused.append((each, error.message))
        else:
            self.accepted[each.kind, name] = each

    async def change(self, number: int, each: Input) -> None:
        """Change an object that was started to the input."""
        name = f"in-{number}"
        path = path_of_kind(each.kind, self._namespace, name)
        while (each.kind, name) not in self.accepted:
            body = json.loads(await self._api.get(path))
            try:
                await self._api.call(
                    "PUT", path, body={**body, "spec": each.body["spec"]},
                    parameters={"fieldValidation": "Strict"},
                )  # fmt: skip
            except Conflict:
                continue  # the operator wrote its status meanwhile
            except ApiError as error:
                if error.status not in (400, 413, 422):
                    raise
                self.refused.append((each, error.message))
                return
            else:
                self.accepted[each.kind, name] = each

    async def start(self, kinds: list[str]) -> None:
        """Make valid objects of some kinds, all under way."""
        await self._api.create(
            path_of_kind("DatasetRegistration", self._namespace), a_dataset(source=INLINE)
        )
        for number, kind in enumerate(kinds):
            body = {**VALID[kind], "metadata": {"name": f"in-{number}"}}
            await self._api.create(path_of_kind(kind, self._namespace), body)
        until = time.monotonic() + TOLD_SECONDS
        while waiting := [
            body["metadata"]["name"]
            for body in json.loads(
                await self._api.get(path_of_kind("FineTuneJob", self._namespace))
            )["items"]
            if not body.get("status", {}).get("attempts")
        ]:
            assert time.monotonic() < until, f"{len(waiting)} have not begun: {waiting[:10]}"
            await asyncio.sleep(0.5)

    async def untold(self) -> list[str]:
        """Return accepted objects of which the operator has not said a word about this spec."""
        found = []
        for kind in VALID:
            path = path_of_kind(kind, self._namespace)
            for body in json.loads(await self._api.get(path))["items"]:
                status, meta = body.get("status", {}), body["metadata"]
                is_told = status.get("observedGeneration") == meta["generation"] and status.get(
                    "reason"
                )
                if not is_told:
                    each = self.accepted.get((kind, meta["name"]))
                    what = f"{each.path} {each.what}" if each else "as it was"
                    found.append(f"{kind} {meta['name']} {what}: {status.get('reason')}")
        return found


def preparing(marks: dict[str, str], _attempt: int) -> str:
    """Let jobs begin, and none go on."""
    return HANG if marks[labels.STEP] == "prepare" else "ok"


def walk(
    login: Login,
    chosen: list[Input],
    caplog: pytest.LogCaptureFixture,
    *,
    started: bool = False,
) -> Walk:
    async def all_of() -> Walk:
        async with ApiServer(login) as api:
            kubelet = Kubelet(api)
            runner = Runner(login, api, kubelet)
            namespace = f"inputs-{random.randrange(16**8):08x}"
            await runner._make(namespace)
            kubelet.scripts[namespace] = preparing if started else always
            playing = asyncio.create_task(kubelet.run())
            faults = Faults(())
            operator = Operators(login, namespace, faults)
            done = Walk(api, namespace)
            try:
                operator.start()
                if started:
                    await done.start([each.kind for each in chosen])
                turns = asyncio.Semaphore(AT_ONCE)

                async def one(number: int, each: Input) -> None:
                    async with turns:
                        await (done.change if started else done.submit)(number, each)

                await asyncio.gather(*(one(n, each) for n, each in enumerate(chosen)))
                until = time.monotonic() + TOLD_SECONDS
                while untold := await done.untold():
                    assert time.monotonic() < until, f"{len(untold)} not told: {untold[:10]}"
                    await asyncio.sleep(1.0)
                while time.monotonic() - faults.last_write < 5.0:
                    assert time.monotonic() < until, "it does not stop writing"
                    await asyncio.sleep(0.5)
            finally:
                playing.cancel()
                await asyncio.gather(playing, return_exceptions=True)
                await operator.end()
                await runner._remove(namespace)
            return done

    with caplog.at_level(logging.WARNING):
        done = asyncio.run(all_of())
    failed = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert not failed, failed[:3]
    return done


def unnamed(done: Walk) -> list[str]:
    """Return refusals that do not name the field, or the one that it stands in."""
    found = []
    for each, said in done.refused:
        names = [part for part in each.path.split(".") if not part.isdecimal() and part != "key"]
        if not any(name in said for name in names) and "spec" not in said:
            found.append(f"{each.kind} {each.path} {each.what}: {said[:200]}")
    return found


def chosen_at_random(number: int) -> list[Input]:
    all_inputs = list(inputs(VALID))
    assert len(all_inputs) >= LEAST, len(all_inputs)
    return random.Random(1).sample(all_inputs, number)


@pytest.mark.timeout(600)
def test_some_inputs(api_login: Login, caplog: pytest.LogCaptureFixture) -> None:
    done = walk(api_login, chosen_at_random(EVERY_TIME), caplog)
    print(f"{len(done.refused)} refused, {len(done.accepted)} accepted and told")
    assert not unnamed(done)


@pytest.mark.timeout(600)
def test_some_changes_after_the_start(api_login: Login, caplog: pytest.LogCaptureFixture) -> None:
    done = walk(api_login, chosen_at_random(CHANGES), caplog, started=True)
    print(f"{len(done.refused)} refused, {len(done.accepted)} accepted and told")
    assert not unnamed(done)


@pytest.mark.nightly
@pytest.mark.timeout(5000)
def test_all_inputs(api_login: Login, caplog: pytest.LogCaptureFixture) -> None:
    done = walk(api_login, list(inputs(VALID)), caplog)
    print(f"{len(done.refused)} refused, {len(done.accepted)} accepted and told")
    assert not unnamed(done)


@pytest.mark.nightly
@pytest.mark.timeout(5000)
def test_many_changes_after_the_start(api_login: Login, caplog: pytest.LogCaptureFixture) -> None:
    done = walk(api_login, chosen_at_random(LEAST), caplog, started=True)
    print(f"{len(done.refused)} refused, {len(done.accepted)} accepted and told")
    assert not unnamed(done)
