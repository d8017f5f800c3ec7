"""Many jobs that report each second: how soon a report is taken, and what is written of them."""

import argparse
import asyncio
import base64
import json
import ssl
import statistics
import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import aiohttp
from benchmarks.load.bench import LONGEST_SECONDS, Bench
from benchmarks.load.operators import HOME, RECEIVER, Operator
from tests.faults.kubelet import HANG, Kubelet

from finetune_operator.permissions import SECRET

SECONDS = 30
PATH = "/v1/progress"
AUDIENCE = "finetune-progress"


async def progress(bench: Bench, arguments: argparse.Namespace) -> None:
    """Start jobs whose pods are played, and report for each of them once a second."""
    namespace = await bench.namespace()
    count = arguments.count or 500
    kubelet = Kubelet(bench.api)
    kubelet.scripts[namespace] = lambda marks, _: (
        HANG if marks["finetune.dev/step"] == "train" else "ok"
    )
    playing = asyncio.create_task(kubelet.run())
    turns = asyncio.Semaphore(16)

    async def one(number: int) -> None:
        async with turns:
            await bench.create(namespace, f"job-{number}")

    await asyncio.gather(*map(one, range(count)))
    pods = await training_pods(bench, namespace, count)
    tokens = [await token(bench, namespace, pod) for pod in pods]
    trusted = ssl.create_default_context(cadata=await authority(bench))
    operator: Operator = arguments.operator
    await operator.until_idle()
    before, cpu = operator.writes(), operator.cpu_seconds()
    taken: list[float] = []
    answers: Counter[int] = Counter()
    connector = aiohttp.TCPConnector(ssl=trusted, limit=0)
    async with aiohttp.ClientSession(base_url=RECEIVER, connector=connector) as session:
        await asyncio.gather(*(
            report(session, each, number / count, taken, answers)
            for number, each in enumerate(tokens)
        ))  # fmt: skip
    cuts = statistics.quantiles(taken, n=100)
    written = (operator.writes() - before) / SECONDS
    print(f"{count} jobs, a report a second each for {SECONDS} s: {dict(answers)}; taken after p50"
          f" {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms; {written:.1f} writes a second;"
          f" the operator used {(operator.cpu_seconds() - cpu) / SECONDS:.0%} of a core")  # fmt: skip
    playing.cancel()
    await bench.remove(namespace)


async def training_pods(bench: Bench, namespace: str, count: int) -> list[dict[str, Any]]:
    """Return the pods that train, once there are so many."""
    until = time.monotonic() + LONGEST_SECONDS
    while True:
        path = f"/api/v1/namespaces/{namespace}/pods"
        found = json.loads(await bench.api.get(path, labelSelector="finetune.dev/step=train"))
        pods: list[dict[str, Any]] = found["items"]
        if len(pods) == count and all(pod["status"]["phase"] == "Running" for pod in pods):
            return pods
        if time.monotonic() > until:
            raise SystemExit(f"{len(pods)} of {count} jobs train")
        await asyncio.sleep(0.5)


async def token(bench: Bench, namespace: str, pod: dict[str, Any]) -> str:
    """Return a token such as the kubelet gives to a pod."""
    meta = pod["metadata"]
    bound = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
    body = {
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": [AUDIENCE], "expirationSeconds": 3600, "boundObjectRef": bound},
    }  # fmt: skip
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/default/token"
    return str(json.loads(await bench.api.create(path, body))["status"]["token"])


async def authority(bench: Bench) -> str:
    """Return the certificates that the receiver is trusted by."""
    found = json.loads(await bench.api.get(f"/api/v1/namespaces/{HOME}/secrets/{SECRET}"))
    return base64.b64decode(found["data"]["ca.crt"]).decode()


async def report(
    session: aiohttp.ClientSession,
    given: str,
    offset: float,
    taken: list[float],
    answers: Counter[int],
) -> None:
    """Report as a trainer does, once a second from an offset on."""
    began = time.monotonic() + offset
    for number in range(1, SECONDS + 1):
        await asyncio.sleep(max(began + number - time.monotonic(), 0))
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        told = {"step": number, "totalSteps": 10_000, "sequence": number, "lastReportTime": now}
        sent = time.monotonic()
        async with session.post(
            PATH, json={"progress": told}, headers={"Authorization": f"Bearer {given}"}
        ) as answer:
            await answer.read()
        answers[answer.status] += 1
        if number > 1:  # the first one opens the connection
            taken.append(1000 * (time.monotonic() - sent))
