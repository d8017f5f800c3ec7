"""How a job stands, in six words: what `why` tells and advises depends on it."""

from enum import StrEnum

from finetune_api.finetunejob import FineTuneJob
from finetune_api.status import Condition
from finetune_cli.cluster.objects import is_over

STARTING = "Starting"
"""Reason of `PodsReady` while a pod is on its way as it should be."""


class Standing(StrEnum):
    """How a job stands."""

    UNSEEN = "Unseen"
    WAITING = "Waiting"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


def _lacks_pods(condition: Condition) -> bool:
    """Tell whether pods wait for something that does not come by itself."""
    is_missing = condition.type == "PodsReady" and condition.status == "False"
    return is_missing and condition.reason != STARTING


def standing_of(job: FineTuneJob) -> Standing:
    """Return how a job stands, by its conditions."""
    status = job.status
    holds = {c.type for c in status.conditions if c.status == "True"}
    is_current = status.run == job.spec.rerun + 1
    if not is_current or not status.conditions:
        return Standing.UNSEEN
    if is_over(job):
        return Standing.SUCCEEDED if "Succeeded" in holds else Standing.FAILED
    if "Suspended" in holds:
        return Standing.SUSPENDED
    attempt = status.attempts[-1] if status.attempts else None
    if attempt is None or any(_lacks_pods(condition) for condition in status.conditions):
        return Standing.WAITING
    return Standing.RUNNING
