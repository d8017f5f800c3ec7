"""Jobs at a steady rate, at once, and very many."""

import argparse
import asyncio
import statistics
import time

from benchmarks.load.bench import Bench
from benchmarks.load.operators import QUIET_SECONDS, Operator


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
    print(f"They stay in namespace {namespace}: to remove so many takes longer than all else.")
