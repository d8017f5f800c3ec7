"""`finetune local ...`: fine-tune on this computer from the manifests a cluster takes."""

from pathlib import Path
from typing import Annotated

import typer

from finetune_api.objects import dump
from finetune_cli import interactive, local_run, show
from finetune_cli.manifests import kind_of, load_manifests
from finetune_operator.local import tools
from finetune_operator.local.store import STATE_FOLDER_NAME, Store
from finetune_operator.plan import Key

local = typer.Typer(no_args_is_help=True, help="Fine-tune on this computer, without a cluster.")

State = Annotated[
    Path,
    typer.Option("--state", envvar="FINETUNE_STATE", help="Folder with objects, cache, outputs."),
]
Output = Annotated[str, typer.Option("-o", "--output", help="text, wide, json or yaml.")]
Namespace = Annotated[str, typer.Option("-n", "--namespace", help="Namespace of the object.")]
DEFAULT_STATE = Path(STATE_FOLDER_NAME)


@local.command()
def run(
    files: Annotated[list[Path], typer.Argument(help="Manifests, or folders of them.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="[KIND/NAME:]PATH=VALUE, e.g. spec.training.maxSteps=10."),
    ] = None,
    state: State = DEFAULT_STATE,
    output: Output = "text",
) -> None:
    """Apply manifests and run them to the end. The same command again goes on where it stopped."""
    manifests = load_manifests(files, set_ or [])
    raise typer.Exit(local_run.run(Store(state), manifests, output))


@local.command()
def get(
    kind: Annotated[
        str | None, typer.Argument(help="ftj, dreg, mex or a full name; unset: all.")
    ] = None,
    name: Annotated[str | None, typer.Argument(help="One object.")] = None,
    state: State = DEFAULT_STATE,
    output: Output = "text",
    namespace: Namespace = "default",
) -> None:
    """List objects."""
    store = Store(state)
    kinds = [kind_of(kind)] if kind else ["DatasetRegistration", "FineTuneJob", "ModelExport"]
    if name:
        found = [(kinds[0], store.require(Key(kinds[0], namespace, name)))]
    else:
        found = [(k.kind, store.require(k)) for one in kinds for k in store.all_keys(one)]
    if output in ("json", "yaml"):
        show.print_as([show.whole(k, resource) for k, resource in found], output)
        return
    if not found:
        print(f"No objects in {store.root}. Begin with: finetune local run FILE")
    for one in kinds:
        of_kind = [dump(resource) for k, resource in found if k == one]
        if of_kind:
            show.print_table(one, of_kind, wide=output == "wide")


def _key(kind_or_job: str, name: str | None, namespace: str) -> Key:
    """Return the object that `KIND NAME`, or the name of a job alone, means."""
    return Key(kind_of(kind_or_job) if name else "FineTuneJob", namespace, name or kind_or_job)


@local.command()
def describe(
    kind_or_job: Annotated[str, typer.Argument(help="A kind, or the name of a FineTuneJob.")],
    name: Annotated[str | None, typer.Argument(help="Name of the object.")] = None,
    state: State = DEFAULT_STATE,
    namespace: Namespace = "default",
) -> None:
    """Show everything worth knowing of an object."""
    store = Store(state)
    key = _key(kind_or_job, name, namespace)
    body = show.whole(key.kind, store.require(key))
    print(show.describe(body, tools.events_of(store, key)))


@local.command()
def logs(
    job: Annotated[str, typer.Argument(help="Name of a FineTuneJob.")],
    step: Annotated[str, typer.Option(help="prepare, train, or export-NAME.")] = "train",
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Wait for more.")] = False,
    state: State = DEFAULT_STATE,
    namespace: Namespace = "default",
) -> None:
    """Print the log of a job's newest attempt at a step."""
    store = Store(state)
    store.require(Key("FineTuneJob", namespace, job))
    for line in tools.log_lines(
        store, Key("FineTuneJob", namespace, job), step=step, follow=follow
    ):
        print(line, end="", flush=True)


@local.command()
def preview(
    files: Annotated[list[Path], typer.Argument(help="Manifests of a job and its data.")],
    rows: Annotated[int, typer.Option(help="Rows of each dataset.")] = 2,
    set_: Annotated[list[str] | None, typer.Option("--set", help="[KIND/NAME:]PATH=VALUE.")] = None,
    state: State = DEFAULT_STATE,
    output: Output = "text",
) -> None:
    """Show rows as the model sees them, and every value a run would use. Nothing is trained."""
    bodies = [
        (manifest.body, manifest.path.parent) for manifest in load_manifests(files, set_ or [])
    ]
    interactive.show_preview(
        tools.preview(Store(state), bodies, rows=rows), as_json=output == "json"
    )


@local.command()
def chat(
    job: Annotated[str, typer.Argument(help="Name of a FineTuneJob that has trained.")],
    compare: Annotated[
        bool, typer.Option("--compare", help="Let the base model answer too.")
    ] = False,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Ask this and end.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 128,
    state: State = DEFAULT_STATE,
    namespace: Namespace = "default",
) -> None:
    """Talk with a tuned model."""
    job_file = tools.chat_file(
        Store(state),
        Key("FineTuneJob", namespace, job),
        compare=compare,
        max_new_tokens=max_new_tokens,
    )
    interactive.chat(job_file, prompt=prompt)


@local.command()
def delete(
    kind_or_job: Annotated[str, typer.Argument(help="A kind, or the name of a FineTuneJob.")],
    name: Annotated[str | None, typer.Argument(help="Name of the object.")] = None,
    state: State = DEFAULT_STATE,
    namespace: Namespace = "default",
) -> None:
    """Delete an object; a retained output stays."""
    store = Store(state)
    key = _key(kind_or_job, name, namespace)
    kept = tools.delete(store, key)
    print(
        f"{key.kind.lower()}/{key.name} deleted" + (f"; its output stays: {kept}" if kept else "")
    )
