"""What the operator costs and how fast it answers, on a real API server.

python -m benchmarks.load latency|burst|progress|memory ... [--kubeconfig FILE] [--count N] [--rate N]
    [--manifest FILE --resource GROUP/VERSION/PLURAL --no-operator]

`--manifest` with `--resource` measures another controller, which runs already (`--no-operator`): a YAML
of one object, whose name is set for each; what counts is its first Job.
"""

import argparse
import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.load.bench import Bench
from benchmarks.load.jobs import burst, latency, memory
from benchmarks.load.operators import Operator
from benchmarks.load.progress import progress

from finetune_operator.cluster.client import ApiError, ApiServer
from finetune_operator.cluster.login import log_in

GROUP = "finetune.dev/v1alpha1/finetunejobs"


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
    ways = {"latency": latency, "burst": burst, "progress": progress, "memory": memory}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="+", choices=list(ways))
    default = Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube/config")
    parser.add_argument("--kubeconfig", type=Path, default=default)
    parser.add_argument("--count", type=int, help="objects; unset: 300, 1000, 500, 10000")
    parser.add_argument("--rate", type=float, default=10.0, help="objects a second (latency)")
    parser.add_argument("--manifest", type=Path, help="an object of another controller")
    parser.add_argument("--resource", default=GROUP, help="GROUP/VERSION/PLURAL of it")
    parser.add_argument("--no-operator", action="store_true", help="the controller runs already")
    arguments = parser.parse_args()

    async def measure() -> None:
        for what in arguments.what:
            async with running(arguments) as bench:
                await ways[what](bench, arguments)

    try:
        asyncio.run(measure())
    except ApiError as error:
        raise SystemExit(f"the API server refuses: {error}") from error


if __name__ == "__main__":
    main()
