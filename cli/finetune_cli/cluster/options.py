"""What every command on a cluster has: the options of kubectl, and a connection."""

import functools
import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from finetune_cli.cluster.connection import Cluster

P = ParamSpec("P")

Context = Annotated[
    str | None, typer.Option("--context", help="Context of the kubeconfig; unset: the current one.")
]
Namespace = Annotated[
    str | None, typer.Option("-n", "--namespace", help="Namespace; unset: the context's.")
]


def on_cluster(command: Callable[Concatenate[Cluster, P], None]) -> Callable[..., None]:
    """Give a command the options --context and -n, and the cluster they mean as its first argument."""

    @functools.wraps(command)
    def run(context: str | None, namespace: str | None, **given: Any) -> None:
        command(Cluster(context, namespace), **given)  # type: ignore[call-arg]

    _, *own = inspect.signature(command, eval_str=True).parameters.values()
    shared = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in (("context", Context), ("namespace", Namespace))
    ]
    own = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in own]
    run.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    return run
