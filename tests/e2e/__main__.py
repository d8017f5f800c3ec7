"""All tests that need a cluster: python -m tests.e2e [arguments of pytest]."""

import os
import subprocess
import sys
from contextlib import ExitStack

from tests.cluster import Cluster, ClusterError, default_state
from tests.cluster.fixtures import used
from tests.cluster.machine import why_not
from tests.cluster.tools import helm
from tests.e2e.images import bring_to

# Those that take longest come first.
TOGETHER = (
    "-n", "2", "--dist", "loadscope", "--no-loadscope-reorder",
    "-m", "cluster and not alone and not nightly",
)  # fmt: skip
ALONE = ("-m", "cluster and alone and not nightly")
ELSEWHERE = tuple(f"--ignore=tests/{name}" for name in ("unit", "contract", "trainer"))
"""Collecting them takes long, and none of them needs a cluster."""
ALWAYS = ("--reruns", "1", "--durations", "25")


def main() -> int:
    """Bring up the cluster, with the images that ship, for all of them; return their status."""
    with ExitStack() as stack:
        if not os.environ.get("FINETUNE_TEST_KUBECONFIG"):
            try:
                prepare(stack)
            except ClusterError as error:
                print(f"No test cluster on this machine; tests that need one are skipped:\n{error}")
                return 1 if os.environ.get("FINETUNE_REQUIRE_CLUSTER") else 0
        command = [sys.executable, "-m", "pytest", "tests", *ELSEWHERE, *ALWAYS, *sys.argv[1:]]
        ended = [subprocess.run([*command, *part], check=False) for part in (ALONE, TOGETHER)]
    return max(one.returncode for one in ended)


def prepare(stack: ExitStack) -> None:
    """Start what takes long before any test's time runs; it ends with the stack.

    Raises:
        ClusterError: This machine cannot host a cluster, or a part of it could not be made.
    """
    if reason := why_not():
        raise ClusterError(reason)
    print("Bringing up the test cluster and its images (the first time: 20 minutes)", flush=True)
    helm()
    bring_to(stack.enter_context(used(Cluster(default_state()))))


if __name__ == "__main__":
    sys.exit(main())
