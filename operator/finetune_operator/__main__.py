"""`python -m finetune_operator --settings FILE`: the operator of a cluster."""

import argparse
import asyncio
import json
import os
import socket
import sys
import uuid
from pathlib import Path

import kopf
import uvloop
import yaml
from pydantic import ValidationError

from finetune_operator.cluster.controller import Controller
from finetune_operator.cluster.login import Login, log_in
from finetune_operator.handlers import register
from finetune_operator.logs import configure
from finetune_operator.settings import Settings


def main() -> int:
    """Run until told to stop; return 1 when the lease was lost: a new process takes part again."""
    parser = argparse.ArgumentParser(prog="finetune_operator", description=__doc__)
    parser.add_argument("--settings", type=Path, required=True, help="YAML, as the chart writes it")
    arguments = parser.parse_args()
    try:
        settings = read_settings(arguments.settings)
    except (ValidationError, OSError, yaml.YAMLError) as error:
        print(f"{arguments.settings}: {error}", file=sys.stderr)
        return 2
    configure(settings.log_format)
    return uvloop.run(operate(log_in(), settings))


def read_settings(path: Path) -> Settings:
    """Return the settings of a file.

    Raises:
        ValidationError: it breaks their schema.
    """
    return Settings.model_validate_json(json.dumps(yaml.safe_load(path.read_text("utf-8")) or {}))


async def operate(login: Login, settings: Settings) -> int:
    """Run the operator; return its exit code."""
    # The name of a pod: a process that takes the place of a killed one there leads on at once.
    identity = os.environ.get("POD_NAME") or f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
    controller = Controller(login, settings, identity=identity)
    registry, stop = kopf.OperatorRegistry(), asyncio.Event()
    register(registry, controller, stop)
    port = settings.health_port
    await kopf.operator(
        registry=registry,
        standalone=True,
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
        liveness_endpoint=f"http://0.0.0.0:{port}/healthz" if port else None,
        stop_flag=stop,
        # Else kopf makes one of the user's name, and an image's user has none.
        # A plain text to kopf, under a type of its own that it does not export.
        identity=identity,  # type: ignore[arg-type]
    )
    return 1 if stop.is_set() else 0


if __name__ == "__main__":
    sys.exit(main())
