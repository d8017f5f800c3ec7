"""From a Job and its Pod to an observed run: does it run, how did it end, what does it wait for."""

import re
from datetime import UTC, datetime

from finetune_api.contract import FAILURE_CLASSES, ErrorReport, ExitCode, Termination
from finetune_api.lastword import decode
from finetune_operator.cluster.records import Job, Pod, Terminated
from finetune_operator.cluster.records import Waiting as Container
from finetune_operator.conditions import seconds_of
from finetune_operator.manifests import labels
from finetune_operator.plan import ObservedRun, Waiting

OOM_KILLED = "OOMKilled"
BACK_OFF = re.compile(r'^Back-off pulling image "[^"]*": (ErrImagePull: )?')
IMAGE_REASONS = {
    "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull",
    "ImageInspectError", "RegistryUnavailable",
}  # fmt: skip
LONGEST_MESSAGE = 4096
LOST_POD_SECONDS = 30.0
"""How long after its grace period a pod is waited for; then its node is taken for lost."""


def observed_run(
    job: Job, pod: Pod | None, waiting: Waiting | None, *, tells: bool = True
) -> ObservedRun:
    """Return what a Job and its Pod say of a run; `waiting` is what events told.

    `tells`: what it waits for has lasted long enough to be told.
    """
    meta = job.metadata
    is_over = job.has("Complete") or job.has("Failed")
    state = pod.state if pod else None
    ended = state.terminated if state else None
    started = _seconds((state.running.started_at if state and state.running else None)
                       or (ended.started_at if ended else None))  # fmt: skip
    finished = _seconds(ended.finished_at if ended else None) or _seconds(_over_since(job))
    return ObservedRun(
        name=meta.name,
        run=_number(meta.labels.get(labels.RUN, "1")),
        step=meta.labels.get(labels.STEP, ""),
        is_running=not is_over,
        started_at=started if started is not None else finished if is_over else None,
        ended_at=finished if is_over else None,
        waiting=(
            None if is_over or started is not None or not tells else _waiting(job, pod) or waiting
        ),
        termination=_termination(job, pod, ended) if is_over else None,
    )


def _number(text: str) -> int:
    """Return the number of a label; people can write there too."""
    return int(text) if text.isdecimal() else 0


def _over_since(job: Job) -> str | None:
    times = [c.last_transition_time for c in job.status.conditions
             if c.type in ("Complete", "Failed") and c.status == "True"]  # fmt: skip
    return next(iter(times), None)


def _seconds(text: str | None) -> float | None:
    return seconds_of(text) if text else None


def _termination(job: Job, pod: Pod | None, ended: Terminated | None) -> Termination | None:
    """Return a run's last word, or what its end tells; None if nothing is known."""
    if ended is not None and (said := decode(ended.message)) is not None:
        # Whatever runs there may have written it; an exit code is a byte.
        return said.model_copy(update={"exit_code": said.exit_code & 0xFF})
    if pod is None:
        return _lost("its pod vanished before it could be read") if job.has("Failed") else None
    disruption = pod.condition("DisruptionTarget")
    if disruption is not None and disruption.status == "True":
        return _lost(f"disrupted ({disruption.reason}): {disruption.message}")
    if ended is None:
        where = f" on node {pod.spec.node_name}" if pod.spec.node_name else ""
        why = pod.status.message or pod.status.reason or "without a word"
        return _lost(f"the pod ended{where}: {why}")
    return Termination(exit_code=_class_of(ended), error=ErrorReport(message=_said(ended, pod)))


def _lost(message: str) -> Termination:
    error = ErrorReport(message=message[:LONGEST_MESSAGE])
    return Termination(exit_code=ExitCode.INFRASTRUCTURE, error=error)


def _class_of(ended: Terminated) -> int:
    if ended.reason == OOM_KILLED:
        return ExitCode.OUT_OF_MEMORY
    known = ended.exit_code in FAILURE_CLASSES
    return ended.exit_code if known else ExitCode.INFRASTRUCTURE


def _said(ended: Terminated, pod: Pod) -> str:
    where = f" on node {pod.spec.node_name}" if pod.spec.node_name else ""
    if ended.reason == OOM_KILLED:
        return (
            f"the container was ended{where} because it needed more memory than its limit; raise"
            " `spec.workers.resources.limits.memory`, or lower `spec.training.perDeviceBatchSize`"
        )
    if ended.exit_code == 0:
        return f"the step ended well{where}, but its result could not be read; it is made again"
    said = f": {ended.message[:500]}" if ended.message else ""
    return f"the container ended{where} with exit code {ended.exit_code} ({ended.reason}){said}"


def _waiting(job: Job, pod: Pod | None) -> Waiting | None:
    """Return what a run waits for, as far as Job and Pod tell it themselves."""
    if job.spec.suspend:
        return Waiting(
            "Queued",
            f"Job {job.metadata.name} is suspended: a queue has not admitted it yet; look at its"
            " Workload, or at who suspended it",
        )
    if pod is None:
        return None
    scheduled = pod.condition("PodScheduled")
    if scheduled is not None and scheduled.status == "False":
        return _unscheduled(pod, scheduled.message)
    return _not_started(pod)


def _unscheduled(pod: Pod, message: str) -> Waiting:
    said = f"pod {pod.metadata.name} cannot be placed: {message}"
    if "persistentvolumeclaim" in message and "not found" in message:
        return Waiting("ClaimNotFound", f"{said}; create that claim, or correct the location")
    if "unbound" in message or "PersistentVolume" in message:
        return Waiting("ClaimNotBound", f"{said}; look at the claim: kubectl describe pvc")
    if "SchedulingGated" in message or "gates" in message:
        return Waiting("Queued", said)
    return Waiting(
        "NoNodeFits",
        f"{said}; ask for less in `spec.workers`, or add such a node",
    )


def _not_started(pod: Pod) -> Waiting | None:
    waiting = pod.state.waiting
    if waiting is None:
        return None
    if waiting.reason in IMAGE_REASONS:
        return Waiting(
            "ImageNotPulled",
            f"pod {pod.metadata.name}: {_without_turn(waiting)}; correct the image's name, or give a"
            " pull secret for its registry",
        )
    if waiting.reason in (
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
    ):
        return Waiting(
            "ContainerNotCreated", f"pod {pod.metadata.name}: {waiting.reason}: {waiting.message}"
        )
    return None


def _without_turn(waiting: Container) -> str:
    """Return why an image is not there, in the same words while a kubelet pauses and while it tries."""
    said = BACK_OFF.sub("", waiting.message)
    return said if said else f"{waiting.reason}: {waiting.message}"


def waiting_of_events(events: list[tuple[str, str]]) -> Waiting | None:
    """Return what the newest telling event (reason, message) of a pod or Job says it waits for."""
    for reason, message in reversed(events):
        if reason in ("FailedMount", "FailedAttachVolume"):
            kind = "SecretNotFound" if _names_missing(message, "secret") else "VolumeNotMounted"
            kind = "ConfigMapNotFound" if _names_missing(message, "configmap") else kind
            return Waiting(kind, f"{message}; create it, or correct its name")
        if reason == "FailedCreate" and "exceeded quota" in message:
            return Waiting("QuotaExceeded", f"{message}; raise the quota, or ask for less")
        if reason == "FailedCreate":
            return Waiting("PodRefused", message)
    return None


def _names_missing(message: str, kind: str) -> bool:
    return f"{kind} " in message and "not found" in message


def is_lost(pod: Pod, now: datetime) -> bool:
    """Tell whether a pod should have ended long ago: its node no longer answers."""
    return (left := seconds_until_lost(pod, now)) is not None and left <= 0


def seconds_until_lost(pod: Pod, now: datetime) -> float | None:
    """Return when a pod that is being deleted counts as lost; None: it is not being deleted."""
    # The time of deletion is when the grace period ends.
    until = pod.metadata.deletion_timestamp
    if until is None:
        return None
    return seconds_of(until) + LOST_POD_SECONDS - now.astimezone(UTC).timestamp()
