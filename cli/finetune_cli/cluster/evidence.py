"""What can be known of a job besides its status: pods, warnings, the data it waits for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from finetune_api.datasetregistration import DatasetRegistration
from finetune_api.finetunejob import FineTuneJob
from finetune_cli.cluster.connection import Cluster
from finetune_cli.cluster.objects import events_of, path_of_kind, typed
from finetune_cli.cluster.pods import jobs_of, pods_of, run_of
from finetune_cli.cluster.refusals import Refused, Unreachable
from finetune_cli.words import Problem


def is_ready(dataset: DatasetRegistration) -> bool:
    """Tell whether jobs may train on a registration."""
    return any(c.type == "Ready" and c.status == "True" for c in dataset.status.conditions)


@dataclass
class Evidence:
    """A job, and what was found besides."""

    job: FineTuneJob
    hint: Callable[..., str]
    """Makes a command for the user to type."""
    pods: list[dict[str, Any]] = field(default_factory=list)
    """Of the current run, the newest last."""
    warnings: list[dict[str, str]] = field(default_factory=list)
    """The newest last."""
    datasets: dict[str, DatasetRegistration | None] = field(default_factory=dict)
    """Registrations that the job refers to; None: there is none."""
    unread: list[str] = field(default_factory=list)
    """What could not be looked at, and why."""


def gather(cluster: Cluster, job: FineTuneJob, *, waits_for_data: bool) -> Evidence:
    """Look at everything that may tell why a job stands as it does, as far as the user may."""
    found = Evidence(job, cluster.hint)
    made: list[dict[str, Any]] = []
    with _as_far_as_allowed(found):
        found.pods = _current(pods_of(cluster, job), job)
        made += found.pods[-1:]
    with _as_far_as_allowed(found):
        made += _current(jobs_of(cluster, job), job)[-1:]
    with _as_far_as_allowed(found):
        uids = [job.metadata.uid, *(one["metadata"]["uid"] for one in made)]
        events = [e for uid in uids for e in events_of(cluster, uid, type="Warning")]
        found.warnings = sorted(events, key=lambda event: event["time"])
    if waits_for_data:
        with _as_far_as_allowed(found):
            found.datasets = dict(_datasets(cluster, job))
    return found


def _current(made: list[dict[str, Any]], job: FineTuneJob) -> list[dict[str, Any]]:
    """Return what is of the newest run."""
    return [one for one in made if run_of(one) == job.status.run]


@contextmanager
def _as_far_as_allowed(found: Evidence) -> Iterator[None]:
    """Note what may not be read, and go on: the rest still tells something."""
    try:
        yield
    except Unreachable:
        raise
    except Problem as problem:
        found.unread.append(str(problem).split(";")[0])


def _datasets(
    cluster: Cluster, job: FineTuneJob
) -> Iterator[tuple[str, DatasetRegistration | None]]:
    for reference in [*job.spec.datasets, *(job.spec.eval_datasets or [])]:
        path = path_of_kind("DatasetRegistration", job.metadata.namespace, reference.name)
        try:
            dataset = typed(cluster.get(path))
        except Refused as refused:
            if refused.status != 404:
                raise
            yield reference.name, None
        else:
            assert isinstance(dataset, DatasetRegistration)
            yield reference.name, dataset
