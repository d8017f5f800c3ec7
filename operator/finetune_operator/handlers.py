"""kopf: the process, its probes, its end. What wakes objects are our own informers (decision 004)."""

import asyncio
import logging
from typing import Any

import kopf

from finetune_operator.cluster.controller import Controller
from finetune_operator.cluster.lease import LeaseLost

log = logging.getLogger(__name__)


def register(registry: kopf.OperatorRegistry, controller: Controller, stop: asyncio.Event) -> None:
    """Register what kopf calls."""
    running: list[asyncio.Task[None]] = []

    def ended(task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return  # told to end: that is no failure
        if (error := task.exception()) is not None:
            lost = isinstance(error, LeaseLost) or (
                isinstance(error, BaseExceptionGroup) and error.subgroup(LeaseLost) is not None
            )
            log.error("The operator ends: %s", error, exc_info=None if lost else error)
        stop.set()

    @kopf.on.startup(registry=registry)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        # Our informers watch: kopf needs no list of resources or namespaces, and posts no events.
        settings.scanning.disabled = True
        settings.posting.enabled = False
        task = asyncio.create_task(controller.run(), name="controller")
        task.add_done_callback(ended)
        running.append(task)

    @kopf.on.login(registry=registry)
    async def login(**arguments: Any) -> kopf.ConnectionInfo | None:
        # kopf asks the server which resources it has; it watches none.
        return kopf.login_with_service_account(**arguments) or kopf.login_with_kubeconfig(
            **arguments
        )

    @kopf.on.cleanup(registry=registry)
    async def end(**_: Any) -> None:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    @kopf.on.probe(registry=registry, id="work")
    async def works(**_: Any) -> str:
        if faults := controller.faults():
            raise kopf.PermanentError("; ".join(faults))
        return "working"
