"""The command line `finetune`: for a cluster by default, for this computer as `finetune local ...`."""

import sys

import typer

from finetune_api.errors import Refusal
from finetune_cli.cluster import commands
from finetune_cli.words import Problem, fail, program

LOCAL = "local"


def finetune() -> None:
    """Fine-tune language models from manifests, on a Kubernetes cluster or on this computer."""


def local() -> None:
    """Fine-tune on this computer, without a cluster."""


def app_for(arguments: list[str]) -> typer.Typer:
    """Return the commands; those of `local` are imported only when they are asked for."""
    app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)
    app.callback()(finetune)
    commands.add_to(app)
    if arguments[:1] == [LOCAL]:
        from finetune_cli.local import local as local_commands

        app.add_typer(local_commands, name=LOCAL)
    else:
        app.command(LOCAL)(local)
    return app


def main() -> None:
    """Run the command line; what does not work is printed, not traced."""
    try:
        app_for(sys.argv[1:])(prog_name=program())
    except Refusal as refusal:
        sys.exit(fail(refusal))
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
