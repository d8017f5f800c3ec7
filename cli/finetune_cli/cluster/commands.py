"""The commands on a cluster, as typer knows them."""

import importlib.metadata
from pathlib import Path
from typing import Annotated

import typer

from finetune_api.base import API_VERSION
from finetune_api.errors import Refusal
from finetune_api.objects import KINDS
from finetune_cli import show
from finetune_cli.cluster import changes
from finetune_cli.cluster.connection import Cluster
from finetune_cli.cluster.logs import print_log
from finetune_cli.cluster.objects import (
    OURS,
    events_of,
    listed,
    presentable,
    read,
    read_job,
)
from finetune_cli.cluster.options import Context, on_cluster
from finetune_cli.cluster.submit import submit as submit_all
from finetune_cli.cluster.watch import Watcher
from finetune_cli.cluster.why import why as explain
from finetune_cli.manifests import kind_of, load_manifests

Job = Annotated[str, typer.Argument(help="Name of a FineTuneJob.")]
KindOrJob = Annotated[str, typer.Argument(help="A kind, or the name of a FineTuneJob.")]
Name = Annotated[str | None, typer.Argument(help="Name of the object.")]
DISTRIBUTION = "finetune-operator"


@on_cluster
def submit(
    cluster: Cluster,
    files: Annotated[list[Path], typer.Argument(help="Manifests, or folders of them.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="[KIND/NAME:]PATH=VALUE, e.g. spec.training.maxSteps=10."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Let the server check it, and keep nothing.")
    ] = False,
    watch_: Annotated[
        bool, typer.Option("--watch", help="Then watch the jobs until they have ended.")
    ] = False,
) -> None:
    """Apply manifests: all of them, or none if one is refused."""
    sent = submit_all(cluster, load_manifests(files, set_ or []), dry_run=dry_run)
    if not watch_ or dry_run:
        return
    jobs = [one.body for one in sent if one.body["kind"] == "FineTuneJob"]
    codes = []
    for body in jobs or [one.body for one in sent]:
        metadata = body["metadata"]
        codes.append(
            Watcher(cluster.within(metadata["namespace"]), body["kind"], metadata["name"]).run()
        )
    raise typer.Exit(max(codes))


@on_cluster
def get(
    cluster: Cluster,
    kind: Annotated[
        str | None, typer.Argument(help="ftj, dreg, mex or a full name; unset: all.")
    ] = None,
    name: Annotated[str | None, typer.Argument(help="One object.")] = None,
    output: Annotated[
        str, typer.Option("-o", "--output", help="text, wide, json or yaml.")
    ] = "text",
    everywhere: Annotated[
        bool, typer.Option("-A", "--all-namespaces", help="Of all namespaces.")
    ] = False,
) -> None:
    """List objects."""
    _check_output(output)
    kinds = [kind_of(kind)] if kind else list(KINDS)
    if name:
        found = [read(cluster, kinds[0], name)]
    else:
        found = [body for one in kinds for body in listed(cluster, one, everywhere=everywhere)]
    bodies = [presentable(body) for body in found]
    if output in ("json", "yaml"):
        show.print_as(bodies, output)
        return
    for one in kinds:
        if of_kind := [body for body in bodies if body["kind"] == one]:
            show.print_table(one, of_kind, wide=output == "wide", namespaces=everywhere)
    if not bodies:
        where = "the cluster" if everywhere else f"namespace '{cluster.namespace}'"
        print(f"No objects in {where}. Begin with: {cluster.hint('submit', 'FILE')}")


def _check_output(output: str) -> None:
    if output not in ("text", "wide", "json", "yaml"):
        raise Refusal([f"-o {output}: it must be text, wide, json or yaml"])


@on_cluster
def describe(cluster: Cluster, kind_or_job: KindOrJob, name: Name = None) -> None:
    """Show everything worth knowing of an object."""
    kind = kind_of(kind_or_job) if name else "FineTuneJob"
    body = presentable(read(cluster, kind, name or kind_or_job))
    print(show.describe(body, events_of(cluster, body["metadata"]["uid"])))


@on_cluster
def logs(
    cluster: Cluster,
    job: Annotated[str, typer.Argument(help="Name of a FineTuneJob; or of what has that step.")],
    step: Annotated[
        str | None,
        typer.Option(help="prepare, train, export-NAME; validate or export of the other kinds."),
    ] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Wait for more.")] = False,
    attempt: Annotated[int | None, typer.Option(help="Number; unset: the newest.")] = None,
) -> None:
    """Print the log of a step: unless told otherwise, of the newest attempt at training."""
    raise typer.Exit(print_log(cluster, job, step=step, attempt=attempt, follow=follow))


@on_cluster
def watch(cluster: Cluster, job: Job) -> None:
    """Watch a job until it has ended; exit with 0 if it succeeded, 1 if it failed."""
    raise typer.Exit(Watcher(cluster, "FineTuneJob", job).run())


@on_cluster
def why(cluster: Cluster, job: Job) -> None:
    """Say how a job stands and since when, what shows it, and what to do next."""
    print("\n".join(explain(cluster, read_job(cluster, job))))


@on_cluster
def delete(cluster: Cluster, kind_or_job: KindOrJob, name: Name = None) -> None:
    """Delete an object; a retained output stays."""
    kind = kind_of(kind_or_job) if name else "FineTuneJob"
    changes.delete(cluster, kind, name or kind_or_job)


@on_cluster
def suspend(cluster: Cluster, job: Job) -> None:
    """Let a job save a checkpoint and release its machines."""
    changes.set_suspended(cluster, job, suspend=True)


@on_cluster
def resume(cluster: Cluster, job: Job) -> None:
    """Let a suspended job go on from its checkpoint."""
    changes.set_suspended(cluster, job, suspend=False)


def version(context: Context = None) -> None:
    """Print the versions of this program and of the cluster."""
    print(f"finetune {importlib.metadata.version(DISTRIBUTION)} ({API_VERSION})")
    cluster = Cluster(context)
    server = cluster.get("/version")
    print(f"Kubernetes {server['gitVersion']} at {cluster.server}")
    served = cluster.get(OURS)
    kinds = sorted(r["kind"] for r in served["resources"] if "/" not in r["name"])
    print(f"{API_VERSION} there: {', '.join(kinds)}")


def add_to(app: typer.Typer) -> None:
    """Add the commands, in the order in which they are used."""
    for command in (submit, get, describe, watch, why, logs, suspend, resume, delete, version):
        app.command()(command)
