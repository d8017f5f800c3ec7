"""From Jobs and Pods, as an API server tells them, to runs: ends, and what is waited for."""

from typing import Any

import orjson
import pytest

from finetune_api.contract import ErrorReport, ExitCode, Termination
from finetune_api.lastword import encode
from finetune_operator.cluster.pods import is_lost, observed_run, waiting_of_events
from finetune_operator.cluster.records import Job, Pod, decode_job, decode_pod
from finetune_operator.conditions import seconds_of
from finetune_operator.plan import ObservedRun
from tests.fakes.world import START

BEGAN, ENDED = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"


def a_job(*conditions: str, suspend: bool = False) -> Job:
    body = {
        "metadata": {
            "name": "x-1",
            "labels": {"finetune.dev/run": "2", "finetune.dev/step": "train"},
        },
        "spec": {"suspend": suspend},
        "status": {
            "conditions": [
                {"type": type_, "status": "True", "lastTransitionTime": ENDED}
                for type_ in conditions
            ]
        },
    }
    return decode_job(orjson.dumps(body))


def a_pod(state: dict[str, Any] | None = None, **status: Any) -> Pod:
    if state is not None:
        status["containerStatuses"] = [{"name": "step", "state": state}]
    body = {"metadata": {"name": "x-1-0-abc"}, "spec": {"nodeName": "n1"}, "status": status}
    return decode_pod(orjson.dumps(body))


def ended(code: int, message: str = "", reason: str = "Error") -> dict[str, Any]:
    return {
        "terminated": {
            "exitCode": code, "reason": reason, "message": message, "startedAt": BEGAN,
            "finishedAt": ENDED,
        }
    }  # fmt: skip


def end_of(run: ObservedRun) -> Termination:
    assert run.termination is not None
    assert not run.is_running
    return run.termination


def test_a_running_pod() -> None:
    run = observed_run(a_job(), a_pod({"running": {"startedAt": BEGAN}}), None)
    assert (run.run, run.step, run.is_running) == (2, "train", True)
    assert run.started_at == seconds_of(BEGAN)
    assert (run.waiting, run.termination) == (None, None)


def test_a_container_without_times_is_no_error() -> None:
    run = observed_run(a_job(), a_pod({"running": {"startedAt": None}}), None)
    assert run.is_running


def test_an_end_counts_when_all_pods_are_gone() -> None:
    run = observed_run(a_job("FailureTarget"), a_pod(ended(1)), None)
    assert run.is_running
    assert run.termination is None


def test_a_last_word_is_believed() -> None:
    word = Termination(exit_code=65, error=ErrorReport(message="row 3"))
    run = observed_run(a_job("Failed"), a_pod(ended(65, encode(word))), None)
    assert end_of(run) == word
    assert (run.started_at, run.ended_at) == (seconds_of(BEGAN), seconds_of(ENDED))


@pytest.mark.parametrize(
    ("pod", "code", "words"),
    [
        (a_pod(ended(137, reason="OOMKilled")), ExitCode.OUT_OF_MEMORY, "memory"),
        (a_pod(ended(137)), ExitCode.INFRASTRUCTURE, "exit code 137"),
        (a_pod(ended(64, "zlib:é")), ExitCode.USER_ERROR, "zlib"),
        (a_pod(ended(1, "x" * 4096)), ExitCode.INFRASTRUCTURE, "exit code 1"),
        (None, ExitCode.INFRASTRUCTURE, "vanished"),
        (a_pod(phase="Failed", reason="Evicted", message="m" * 9000), ExitCode.INFRASTRUCTURE, "n1"),
        (
            a_pod(
                ended(143),
                conditions=[
                    {"type": "DisruptionTarget", "status": "True", "reason": "TaintEviction",
                     "message": "m" * 9000}
                ],
            ),
            ExitCode.INFRASTRUCTURE,
            "TaintEviction",
        ),
    ],
)  # fmt: skip
def test_an_end_without_a_word(pod: Pod | None, code: ExitCode, words: str) -> None:
    end = end_of(observed_run(a_job("Failed"), pod, None))
    assert end.exit_code == code
    assert end.error is not None
    assert words in end.error.message


def unscheduled(message: str) -> Pod:
    return a_pod(conditions=[{"type": "PodScheduled", "status": "False", "message": message}])


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        (unscheduled("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."), "NoNodeFits"),
        (unscheduled('persistentvolumeclaim "x" not found'), "ClaimNotFound"),
        (unscheduled("pod has unbound immediate PersistentVolumeClaims"), "ClaimNotBound"),
        (a_pod({"waiting": {"reason": "InvalidImageName", "message": "m"}}), "ImageNotPulled"),
        (a_pod({"waiting": {"reason": "CreateContainerConfigError"}}), "ContainerNotCreated"),
        (a_pod({"waiting": {"reason": "ContainerCreating"}}), None),
        (a_pod(), None),
        (None, None),
    ],
)
def test_what_a_run_waits_for(pod: Pod | None, reason: str | None) -> None:
    run = observed_run(a_job(), pod, None)
    assert (run.waiting.reason if run.waiting else None) == reason
    assert observed_run(a_job(), pod, None, tells=False).waiting is None


def test_a_queued_run() -> None:
    run = observed_run(a_job(suspend=True), None, None)
    assert run.waiting is not None
    assert run.waiting.reason == "Queued"


def test_an_image_that_is_tried_again_is_told_in_the_same_words() -> None:
    """A kubelet alternates between the two for ever: each change would be a write."""
    why = 'failed to resolve reference "r/x:1": not found'
    words = {
        observed_run(a_job(), a_pod({"waiting": waiting}), None).waiting
        for waiting in (
            {"reason": "ErrImagePull", "message": why},
            {"reason": "ImagePullBackOff",
             "message": f'Back-off pulling image "r/x:1": ErrImagePull: {why}'},
        )
    }  # fmt: skip
    assert len(words) == 1
    assert why in str(words)


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([("FailedMount", 'secret "hub" not found')], "SecretNotFound"),
        ([("FailedMount", 'configmap "ca" not found')], "ConfigMapNotFound"),
        ([("FailedAttachVolume", "in use")], "VolumeNotMounted"),
        ([("FailedCreate", "exceeded quota: q")], "QuotaExceeded"),
        ([("FailedCreate", "violates PodSecurity")], "PodRefused"),
        ([("Pulling", "image")], None),
        ([], None),
    ],
)
def test_what_events_tell(events: list[tuple[str, str]], reason: str | None) -> None:
    found = waiting_of_events(events)
    assert (found.reason if found else None) == reason


def test_a_pod_is_lost_well_after_its_grace_period() -> None:
    pod = a_pod()
    assert not is_lost(pod, START)
    pod.metadata.deletion_timestamp = "2025-12-31T23:59:50Z"
    assert not is_lost(pod, START)
    pod.metadata.deletion_timestamp = "2025-12-31T23:59:00Z"
    assert is_lost(pod, START)


def test_a_label_that_somebody_wrote_is_no_error() -> None:
    job = a_job()
    job.metadata.labels["finetune.dev/run"] = "second"
    assert observed_run(job, None, None).run == 0
