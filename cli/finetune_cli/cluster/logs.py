"""`finetune logs`: of the pod of a step's attempt; or what is left of it."""

import sys
import time
from dataclasses import dataclass
from typing import Any

from finetune_api.errors import Refusal
from finetune_api.finetunejob import FineTuneJob
from finetune_api.objects import Resource
from finetune_cli.cluster.connection import Cluster
from finetune_cli.cluster.objects import CORE, is_over, path_of, read, typed
from finetune_cli.cluster.pods import CONTAINER, attempt_of, pods_of, run_of, step_of, waiting_of
from finetune_cli.cluster.refusals import Refused

AGAIN_SECONDS = 1.0
NOT_STARTED = 400
KIND_OF_STEP = {"validate": "DatasetRegistration", "export": "ModelExport"}
"""Steps that other kinds than FineTuneJob have."""


@dataclass(frozen=True)
class Wanted:
    """Which log of an object; `attempt` unset: the newest."""

    step: str
    attempt: int | None = None

    def takes(self, step: str, number: int) -> bool:
        """Tell whether an attempt is meant."""
        return step == self.step and self.attempt in (None, number)


def print_log(
    cluster: Cluster, name: str, *, step: str | None, attempt: int | None, follow: bool
) -> int:
    """Print the log of a step's attempt; return the exit code."""
    kind = KIND_OF_STEP.get(step or "", "FineTuneJob")
    told = ""
    while True:
        resource = typed(read(cluster, kind, name))
        wanted = Wanted(step or _usual_step(resource), attempt)
        pod = _pod(cluster, resource, wanted)
        if pod is not None:
            why = _copied(cluster, pod, follow=follow)
        elif not follow or is_over(resource) or _ended(resource, wanted):
            return _left(resource, wanted)
        else:
            why = f"waiting for a pod of step {wanted.step}: {resource.status.message}"
        if why is None:
            return 0
        if not follow:
            raise Refusal([f"{why}; wait for it with -f, or ask: {cluster.hint('why', name)}"])
        if why != told:
            print(why, file=sys.stderr, flush=True)
        told = why
        time.sleep(AGAIN_SECONDS)


def _usual_step(resource: Resource) -> str:
    """Return the step that is meant without a name: training, as soon as there is any."""
    steps = [attempt.step for attempt in resource.status.attempts]
    return "train" if "train" in steps or not steps else steps[-1]


def _pod(cluster: Cluster, resource: Resource, wanted: Wanted) -> dict[str, Any] | None:
    """Return the newest pod that is meant, of the newest run; None if there is none."""
    pods = pods_of(cluster, resource)
    run = resource.status.run if isinstance(resource, FineTuneJob) else 0
    meant = [
        pod
        for pod in pods
        if wanted.takes(step_of(pod), attempt_of(pod)) and (not run or run_of(pod) == run)
    ]
    return meant[-1] if meant else None


def _copied(cluster: Cluster, pod: dict[str, Any], *, follow: bool) -> str | None:
    """Print a pod's log to its end, so far or for good; return why there is none yet."""
    metadata = pod["metadata"]
    path = path_of(CORE, "pods", metadata["namespace"], metadata["name"]) + "/log"
    query = {"container": CONTAINER, "follow": "true" if follow else "false"}
    try:
        with cluster.stream(path, silence=None, **query) as lines:
            for line in lines:
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
    except Refused as refused:
        if refused.status not in (NOT_STARTED, 404):
            raise
        why = waiting_of(pod) or "; ".join(refused.problems)
        return f"pod {metadata['name']} has not started: {why}"
    return None


def _ended(resource: Resource, wanted: Wanted) -> bool:
    """Tell whether the attempt that is meant has ended, so that its pod does not come again."""
    meant = [a for a in resource.status.attempts if wanted.takes(a.step, a.number)]
    return bool(meant) and meant[-1].end_time is not None and wanted.attempt is not None


def _left(resource: Resource, wanted: Wanted) -> int:
    """Say of a log without a pod what is left of it; return the exit code.

    Raises:
        Refusal: there never was such an attempt.
    """
    name, status = resource.metadata.name, resource.status
    meant = [a for a in status.attempts if wanted.takes(a.step, a.number)]
    if not meant:
        there = ", ".join(f"{a.step} {a.number}" for a in status.attempts) or "nothing yet"
        number = f", attempt {wanted.attempt}" if wanted.attempt else ""
        raise Refusal([f"{name} has no log of step '{wanted.step}'{number}; there: {there}"])
    failure, attempt = status.failure, meant[-1]
    gone = f"the pod of {name}'s step {attempt.step}, attempt {attempt.number}, is gone"
    newest = max(a.number for a in status.attempts if a.step == wanted.step)
    is_of_it = failure is not None and failure.step == wanted.step and attempt.number == newest
    if failure is None or not is_of_it or not failure.log_tail:
        print(f"{gone}, and nothing of its log was kept", file=sys.stderr)
        return 1
    print(f"{gone}; the last lines of its log were kept:", file=sys.stderr, flush=True)
    print(failure.log_tail.rstrip("\n"))
    return 0
