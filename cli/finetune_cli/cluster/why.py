"""`finetune why`: how a job stands and since when, what shows it, and what to do; ten lines at most."""

from collections.abc import Iterator

from finetune_api.finetunejob import FineTuneJob
from finetune_api.status import Attempt, Condition
from finetune_cli.cluster.connection import Cluster
from finetune_cli.cluster.evidence import Evidence, gather, is_ready
from finetune_cli.cluster.nextstep import next_step
from finetune_cli.cluster.pods import attempt_of, node_of, step_of, waiting_of
from finetune_cli.cluster.results import result_lines
from finetune_cli.cluster.standing import STARTING, Standing, standing_of
from finetune_cli.show import age, seconds_of, span
from finetune_cli.words import one_line

MOST_LINES = 10
MOST_ATTEMPTS = 3
MOST_WARNINGS = 2
MOST_RESULTS = 3
LONGEST_LINE = 400
GATES = ("Accepted", "DatasetReady", "Prepared", "PodsReady")
SILENT = ("BackoffLimitExceeded",)
"""Warnings that say nothing: an attempt is a Job that Kubernetes itself never tries again."""
Line = tuple[str, str]
"""What a line is about, and what it says."""


def why(cluster: Cluster, job: FineTuneJob) -> list[str]:
    """Return at most ten lines on a job."""
    standing = standing_of(job)
    waits_for_data = standing is Standing.WAITING and job.status.reason.startswith("Dataset")
    return explain(gather(cluster, job, waits_for_data=waits_for_data), standing)


def explain(found: Evidence, standing: Standing) -> list[str]:
    """Return what was found in words, the most telling first, what to do last."""
    told = [("", f"{found.job.metadata.name} {_head(found.job, standing)}")]
    for line in _evidence(found, standing):
        told.append(line)
    lines = [*told[: MOST_LINES - 1], ("next", next_step(found, standing))]
    width = max(len(label) for label, _ in lines)
    return [lines[0][1]] + [
        f"  {label:<{width}}  {one_line(text, limit=LONGEST_LINE)}" for label, text in lines[1:]
    ]


def _head(job: FineTuneJob, standing: Standing) -> str:
    status = job.status
    match standing:
        case Standing.UNSEEN:
            run = f" run {job.spec.rerun + 1}" if status.run else ""
            since = age(job.metadata.creation_timestamp)
            return f"waits: no operator has taken{run or ' it'} up yet; it was created {since} ago"
        case Standing.SUCCEEDED:
            return f"succeeded {age(status.completion_time)} ago{_took(job)} ({status.reason})"
        case Standing.FAILED:
            failure = status.failure
            where = f" in step {failure.step}" if failure else ""
            code = f", exit code {failure.exit_code}" if failure and failure.exit_code else ""
            rank = f", rank {failure.rank}" if failure and failure.rank is not None else ""
            return f"failed {age(status.completion_time)} ago{where} ({status.reason}{code}{rank})"
        case Standing.SUSPENDED:
            return f"is suspended since {age(_since(job))}"
        case _:
            verb = "waits" if standing is Standing.WAITING else f"is {status.phase.lower()}"
            return f"{verb} since {age(_since(job)) or 'now'} ({status.reason})"


def _took(job: FineTuneJob) -> str:
    start, end = job.status.start_time, job.status.completion_time
    return f", after {span(int(seconds_of(end) - seconds_of(start)))}" if start and end else ""


def _since(job: FineTuneJob) -> str | None:
    """Return since when a job stands as it does."""
    status = job.status
    for condition in status.conditions:
        if condition.reason == status.reason:
            return condition.last_transition_time
    if status.attempts and status.attempts[-1].end_time is None:
        return status.attempts[-1].start_time
    return status.start_time or job.metadata.creation_timestamp


def _evidence(found: Evidence, standing: Standing) -> Iterator[Line]:
    job = found.job
    if standing is not Standing.UNSEEN:
        yield "why" if standing is Standing.FAILED else "state", job.status.message
    if standing is Standing.SUCCEEDED:
        results = result_lines(job)
        yield from (("result", text) for text in results[:MOST_RESULTS])
        if more := results[MOST_RESULTS:]:
            yield "", f"and {len(more)} more: status.artifacts"
        return
    if standing is Standing.RUNNING:
        yield from _progress(job)
    yield from _data(found)
    yield from (
        ("condition", _said(c)) for c in job.status.conditions if _is_failing(c, job.status.message)
    )
    yield from _attempts(found)
    if standing in (Standing.WAITING, Standing.RUNNING, Standing.UNSEEN):
        yield from _pod(found)
    yield from _warnings(found)
    if found.unread:
        yield "unread", "; ".join(dict.fromkeys(found.unread))


def _warnings(found: Evidence) -> Iterator[Line]:
    """Yield the newest warnings that say what the operator has not said itself."""
    message = found.job.status.message
    is_placed = any(node_of(pod) for pod in found.pods[-1:])
    silent = (*SILENT, "FailedScheduling") if is_placed else SILENT
    telling = [
        event
        for event in found.warnings
        if event["reason"] not in silent and not _says_the_same(message, event["message"])
    ]
    for event in telling[: -MOST_WARNINGS - 1 : -1]:
        words = f"{event['reason']}: {event['message']}"
        yield "warning", f"{age(event['time'])} ago, {event['about']}: {words}"


def _says_the_same(one: str, other: str) -> bool:
    return bool(one) and (one in other or other in one)


def _is_failing(condition: Condition, message: str) -> bool:
    """Tell whether a condition holds a job up for a reason that its state does not tell."""
    holds_up = condition.type in GATES and condition.status == "False"
    return holds_up and condition.reason != STARTING and condition.message != message


def _said(condition: Condition) -> str:
    return (
        f"{condition.type} is {condition.status} since {age(condition.last_transition_time)}"
        f" ({condition.reason}): {condition.message}"
    )


def _progress(job: FineTuneJob) -> Iterator[Line]:
    progress, metrics = job.status.progress, job.status.metrics
    if progress is None:
        return
    parts = [f"step {progress.summary} ({progress.percent} %), epoch {progress.epoch}"]
    parts += [f"loss {metrics.loss}"] if metrics and metrics.loss else []
    parts += [f"eta {progress.eta}"] if progress.eta else []
    told = progress.last_report_time
    parts += [f"told {age(told)} ago"] if told else []
    yield "progress", ", ".join(parts)


def _data(found: Evidence) -> Iterator[Line]:
    for name, dataset in found.datasets.items():
        if dataset is None:
            if f"'{name}'" not in found.job.status.message:
                yield "data", f"{name}: there is no DatasetRegistration of that name"
            continue
        status = dataset.status
        if is_ready(dataset):
            continue
        if status.message not in found.job.status.message:
            yield "data", f"{name}: {status.phase} ({status.reason}): {status.message}"
        for row in status.errors[:1]:
            yield "data", f"{name}, row {row.row}, `{row.field}`: {row.message}"


def _attempts(found: Evidence) -> Iterator[Line]:
    attempts = [a for a in found.job.status.attempts if a.reason != "Completed"]
    left_out = len(attempts) - MOST_ATTEMPTS
    for attempt in attempts[-MOST_ATTEMPTS:]:
        yield "attempt", _attempt(attempt, found)
    if left_out > 0:
        yield "attempt", f"and {left_out} before"


def _attempt(attempt: Attempt, found: Evidence) -> str:
    parts = [f"{attempt.step} {attempt.number}: {attempt.reason or 'under way'}"]
    if attempt.exit_code is not None:
        parts.append(f"exit code {attempt.exit_code}")
    is_of_it = (
        p
        for p in found.pods
        if (step_of(p), attempt_of(p)) == (attempt.step, attempt.number) and node_of(p)
    )
    parts += [f"on {node_of(pod)}" for pod in list(is_of_it)[-1:]]
    if attempt.resumed_from_step is not None:
        parts.append(f"from step {attempt.resumed_from_step}")
    if attempt.steps_done is not None:
        parts.append(f"up to step {attempt.steps_done}")
    if attempt.end_time:
        took = int(seconds_of(attempt.end_time) - seconds_of(attempt.start_time))
        parts.append(f"{span(took)} long, ended {age(attempt.end_time)} ago")
    else:
        parts.append(f"begun {age(attempt.start_time)} ago")
    return ", ".join(parts)


def _pod(found: Evidence) -> Iterator[Line]:
    for pod in found.pods[-1:]:
        waiting = waiting_of(pod)
        if waiting:
            told = f"{pod['metadata']['name']}: {waiting}"
            if waiting not in found.job.status.message:
                yield "pod", told
