"""What the operator costs and how fast it answers, on a real API server.

python benchmarks/load.py latency|burst|memory [--kubeconfig FILE] [--count N] [--rate N]
    [--manifest FILE --resource GROUP/VERSION/PLURAL --no-operator]

`--manifest` with `--resource` measures another controller, which runs already (`--no-operator`): a YAML
of one object, whose name is set for each; what counts is its first Job.
"""

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from finetune_operator.cluster.client import BATCH, ApiError, ApiServer, path_of
from finetune_operator.cluster.login import log_in

GROUP = "finetune.dev/v1alpha1/finetunejobs"
JOB = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "spec": {
        "model": {"uri": "pvc://models/model"},
        "datasets": [{"name": "rows"}],
        "workers": {"gpusPerNode": 0, "pod": {"nodeSelector": {"finetune.dev/bench": "none"}}},
    },
}
READY_SECONDS = 60.0
LONGEST_SECONDS = 300.0
QUIET_SECONDS = 5.0


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
        self._api, self._arguments = api, arguments
        group, version, self._plural = arguments.resource.split("/")
        self._group = f"/apis/{group}/{version}"
        given = arguments.manifest
        self._body = yaml.safe_load(given.read_text("utf-8")) if given else JOB
        self.seen = Seen()
        self.watching = asyncio.Event()

    async def namespace(self) -> str:
        """Make a namespace in which a job finds its data ready."""
        name = f"bench-{uuid.uuid4().hex[:8]}"
        await self._api.create(
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
        await self._api.create(path, rows)
        told = {"lastTransitionTime": "2026-01-01T00:00:00Z", "reason": "Validated", "message": "",
                "observedGeneration": 1}  # fmt: skip
        status = {
            "observedGeneration": 1, "phase": "Ready", "reason": "Validated", "format": "alpaca",
            "purpose": "conversation", "rows": 1, "digest": "sha256:bench", "run": 1,
            "conditions": [{**told, "type": t, "status": "True"} for t in ("Ready", "Finished", "Succeeded")],
        }  # fmt: skip
        await self._api.patch(f"{path}/rows/status", {"metadata": {}, "status": status})

    async def create(self, namespace: str, name: str) -> None:
        """Create an object and note when it was sent."""
        body = {**self._body, "metadata": {"name": name, "namespace": namespace}}
        self.seen.sent[name] = time.monotonic()
        await self._api.create(path_of(self._plural, namespace, group=self._group), body)

    async def watch(self) -> None:
        """Note the first Job of each object until cancelled."""
        path = path_of("jobs", "", group=BATCH)
        listed = json.loads(await self._api.get(path, limit="1"))
        self.watching.set()
        version = listed["metadata"]["resourceVersion"]
        async with aclosing(self._api.watch(path, version=version)) as lines:
            async for line in lines:
                now, event = time.monotonic(), json.loads(line)
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
        """Remove a namespace, without waiting."""
        await self._api.call("DELETE", f"/api/v1/namespaces/{namespace}", body={})


async def latency(bench: Bench, arguments: argparse.Namespace) -> None:
    """Objects at a steady rate: from sending one to its first Job."""
    namespace = await bench.namespace()
    names = [f"job-{number}" for number in range(arguments.count or 300)]
    tasks = []
    began = time.monotonic()
    for number, name in enumerate(names):
        await asyncio.sleep(max(began + number / arguments.rate - time.monotonic(), 0))
        tasks.append(asyncio.create_task(bench.create(namespace, name)))
    await asyncio.gather(*tasks)
    await bench.until_made(names)
    found = sorted(bench.seen.milliseconds(names))
    cuts = statistics.quantiles(found, n=100)
    print(f"{len(names)} objects at {arguments.rate}/s, to the first Job: p50 {cuts[49]:.1f} ms,"
          f" p90 {cuts[89]:.1f} ms, p99 {cuts[98]:.1f} ms, most {found[-1]:.1f} ms")  # fmt: skip
    await bench.remove(namespace)


async def burst(bench: Bench, arguments: argparse.Namespace) -> None:
    """Many objects at once in one namespace, and one object in another meanwhile."""
    loud, quiet = await bench.namespace(), await bench.namespace()
    names = [f"job-{number}" for number in range(arguments.count or 1000)]
    began = time.monotonic()
    turns = asyncio.Semaphore(32)

    async def one(name: str) -> None:
        async with turns:
            await bench.create(loud, name)

    creating = asyncio.gather(*map(one, names))
    await asyncio.sleep(1.0)
    await bench.create(quiet, "alone")
    await creating
    created = time.monotonic() - began
    await bench.until_made([*names, "alone"])
    last = max(bench.seen.made[name] for name in names) - began
    (alone,) = bench.seen.milliseconds(["alone"])
    print(f"{len(names)} objects at once: created in {created:.1f} s, all with a Job after {last:.1f} s;"
          f" one of another namespace meanwhile after {alone:.0f} ms")  # fmt: skip
    for namespace in (loud, quiet):
        await bench.remove(namespace)


async def memory(bench: Bench, arguments: argparse.Namespace) -> None:
    """Many objects with a Job each; the operator's memory, and what a fresh one does with them."""
    namespace = await bench.namespace()
    names = [f"job-{number}" for number in range(arguments.count or 10_000)]
    turns = asyncio.Semaphore(32)

    async def one(name: str) -> None:
        async with turns:
            await bench.create(namespace, name)

    began = time.monotonic()
    await asyncio.gather(*map(one, names))
    await bench.until_made(names)
    operator: Operator = arguments.operator
    print(f"{len(names)} objects with a Job each after {time.monotonic() - began:.0f} s;"
          f" the operator has {operator.megabytes():.0f} MB")  # fmt: skip
    operator.stop()
    started = time.monotonic()
    operator.start()
    operator.wait_until_leading()
    await operator.until_idle()
    print(f"a fresh one has looked at all after {time.monotonic() - started - QUIET_SECONDS:.1f} s, with"
          f" {operator.writes():.0f} writes and {operator.megabytes():.0f} MB")  # fmt: skip
    await bench.remove(namespace)


class Operator:
    """An operator as a process of this machine."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        self._kubeconfig, self._folder = kubeconfig, folder
        self._port = 19090
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        settings = {
            "images": {"trainer": "none:1"}, "healthPort": 0, "metricsPort": self._port,
            "lease": {"namespace": "default", "name": "finetune-bench"},
        }  # fmt: skip
        path = self._folder / "settings.yaml"
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        self._log = (self._folder / "log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "finetune_operator", "--settings", str(path)],
            env={**kept, "KUBECONFIG": str(self._kubeconfig), "POD_NAME": "bench"},
            stdout=self._log, stderr=self._log,
        )  # fmt: skip

    def stop(self) -> None:
        """End it as a pod is ended."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(30)
        self._log.close()

    def wait_until_leading(self) -> None:
        """Return when it acts."""
        until = time.monotonic() + READY_SECONDS
        while "Leading as" not in (self._folder / "log").read_text():
            if time.monotonic() > until:
                raise SystemExit((self._folder / "log").read_text()[-2000:])
            time.sleep(0.05)

    def _metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics") as answer:
            return str(answer.read().decode())

    def writes(self) -> float:
        """Return its writes so far, but those of its Lease."""
        found = re.findall(
            r'finetune_api_call_seconds_count\{code="\d+",method="(?:POST|PATCH|DELETE)"\} (\S+)',
            self._metrics(),
        )
        return sum(map(float, found))

    async def until_idle(self) -> None:
        """Return when nothing has waited for a while."""
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < QUIET_SECONDS:
            (waiting,) = re.findall(r"^finetune_queue_keys (\S+)", self._metrics(), re.M)
            if float(waiting):
                quiet_since = time.monotonic()
            await asyncio.sleep(0.2)

    def megabytes(self) -> float:
        """Return the memory that it has resident."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


@asynccontextmanager
async def running(arguments: argparse.Namespace) -> AsyncIterator[Bench]:
    """Give a measurement, with an operator if one is wanted."""
    with tempfile.TemporaryDirectory() as name:
        operator = Operator(arguments.kubeconfig, Path(name))
        arguments.operator = operator
        if not arguments.no_operator:
            operator.start()
            operator.wait_until_leading()
        try:
            async with ApiServer(log_in(str(arguments.kubeconfig))) as api:
                bench = Bench(api, arguments)
                watching = asyncio.create_task(bench.watch())
                await bench.watching.wait()
                yield bench
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
        finally:
            if not arguments.no_operator:
                operator.stop()


def main() -> None:
    ways = {"latency": latency, "burst": burst, "memory": memory}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=list(ways))
    default = Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube/config")
    parser.add_argument("--kubeconfig", type=Path, default=default)
    parser.add_argument("--count", type=int, help="objects; unset: 300, 1000, 10000")
    parser.add_argument("--rate", type=float, default=10.0, help="objects a second (latency)")
    parser.add_argument("--manifest", type=Path, help="an object of another controller")
    parser.add_argument("--resource", default=GROUP, help="GROUP/VERSION/PLURAL of it")
    parser.add_argument("--no-operator", action="store_true", help="the controller runs already")
    arguments = parser.parse_args()

    async def measure() -> None:
        async with running(arguments) as bench:
            await ways[arguments.what](bench, arguments)

    try:
        asyncio.run(measure())
    except ApiError as error:
        raise SystemExit(f"the API server refuses: {error}") from error


if __name__ == "__main__":
    main()
