"""The last line of `finetune why`: what to do about it."""

from finetune_api.finetunejob import FineTuneJob
from finetune_api.status import FailureClass
from finetune_cli.cluster.evidence import Evidence, is_ready
from finetune_cli.cluster.objects import is_over
from finetune_cli.cluster.results import claims
from finetune_cli.cluster.standing import Standing

OPERATOR_PODS = "kubectl get pods --all-namespaces -l app.kubernetes.io/name=finetune-operator"
CORRECTION = {
    FailureClass.USER_ERROR: "correct the manifest as said above",
    FailureClass.DATA_ERROR: "correct the data as said above, raise the registration's `spec.refresh`",
    FailureClass.OUT_OF_MEMORY: (
        "lower `spec.training.perDeviceBatchSize` or `spec.data.maxLength`, or give a larger GPU"
    ),
    FailureClass.INFRASTRUCTURE: "mend what is said above (network, node or storage)",
    FailureClass.STALLED: "find in the log where its processes stood",
    FailureClass.DEADLINE: "raise `spec.activeDeadlineSeconds`",
    FailureClass.INTERNAL: "this is a defect of finetune-operator: report it with the log",
}
"""What must change before another run is of use."""
ON_ITS_WAY = ("", "Validating", "Restarting")
"""Reasons of a registration that is being read, or about to be."""
LOG_TELLS = (FailureClass.INFRASTRUCTURE, FailureClass.STALLED, FailureClass.INTERNAL)
"""Failures whose message may not say all: the log does."""


def next_step(found: Evidence, standing: Standing) -> str:
    """Return what the user should do next."""
    job, hint = found.job, found.hint
    name = job.metadata.name
    match standing:
        case Standing.UNSEEN:
            return f"see whether the operator runs: {OPERATOR_PODS}"
        case Standing.SUCCEEDED:
            return _use(job)
        case Standing.FAILED:
            return _again(found)
        case Standing.SUSPENDED:
            return hint("resume", name)
        case Standing.WAITING:
            return _unblock(found)
        case _:
            return f"nothing; look on: {hint('watch', name)}, or {hint('logs', name, '-f')}"


def _use(job: FineTuneJob) -> str:
    held_by = claims(job)
    if not held_by:
        return "read the result from where it lies"
    return (
        f"mount claim {' and '.join(held_by)} in a pod of namespace {job.metadata.namespace}; the result's"
        " folder on it is what follows the claim's name above"
    )


def _again(found: Evidence) -> str:
    """Say how a failed job is run again."""
    job, hint = found.job, found.hint
    failure = job.status.failure
    first = CORRECTION[failure.failure_class] if failure else "correct what is said above"
    name = job.metadata.name
    if not job.status.attempts:
        return f"{first} and submit it; it starts by itself: {hint('submit', 'FILE')}"
    rerun = f"FineTuneJob/{name}:spec.rerun={job.spec.rerun + 1}"
    again = hint("submit", "FILE", "--set", rerun)
    if failure and failure.failure_class in LOG_TELLS:
        first += f"; its log: {hint('logs', name, '--step', failure.step)}"
    return f"{first}; then run it again: {again}"


def _unblock(found: Evidence) -> str:
    """Say how what a job waits for comes about."""
    job, hint = found.job, found.hint
    for name, dataset in found.datasets.items():
        if dataset is None:
            return f"submit that registration, the job goes on by itself: {hint('submit', 'FILE')}"
        if is_over(dataset) and not is_ready(dataset):
            return f"correct the data; every problem: {hint('describe', 'dreg', name)}"
        if dataset.status.reason not in ON_ITS_WAY and not is_ready(dataset):
            return f"do as said above, the job goes on by itself; more: {hint('describe', 'dreg', name)}"
    if found.datasets:
        return f"wait; the job goes on by itself: {hint('watch', job.metadata.name)}"
    for pod in found.pods[-1:]:
        metadata = pod["metadata"]
        where = f"kubectl describe pod -n {metadata['namespace']} {metadata['name']}"
        return f"do as said above, the job goes on by itself; more: {where}"
    return f"do as said above, the job goes on by itself: {hint('watch', job.metadata.name)}"
