"""`finetune local run`: apply, drive to the end, show what happens."""

import asyncio
import json
import os
import signal
import time
from functools import partial
from pathlib import Path

from finetune_api.errors import Refusal
from finetune_api.finetunejob import FineTuneJob
from finetune_api.objects import dump
from finetune_cli.manifests import Manifest
from finetune_cli.screen import Screen, escaped
from finetune_cli.words import INTERRUPTED
from finetune_operator.local.driver import AlreadyDriven, Driver, driving
from finetune_operator.local.store import Store
from finetune_operator.local.tools import artifact_path
from finetune_operator.plan import Event, Key

FOLLOW_SECONDS = 0.5


def apply_all(store: Store, manifests: list[Manifest], screen: Screen) -> list[Key]:
    """Store every object, or none: a refusal names each problem with its object."""
    problems = []
    for manifest in manifests:
        try:
            store.check(manifest.body, base=manifest.path.parent)
        except Refusal as refusal:
            problems += [
                f"{manifest.path}: {manifest.label}: {problem}" for problem in refusal.problems
            ]
    if problems:
        raise Refusal(problems)
    keys = []
    for manifest in manifests:
        key, done = store.apply(manifest.body, base=manifest.path.parent)
        keys.append(key)
        screen.say(f"{key.kind.lower()}/{key.name} {done}")
    return keys


def run(store: Store, manifests: list[Manifest], output: str) -> int:
    """Apply manifests and drive them to their end; return the exit code."""
    screen = Screen(output)
    try:
        keys = apply_all(store, manifests, screen)
        try:
            with driving(store):
                interrupted = asyncio.run(_drive(store, keys, screen))
        except AlreadyDriven:
            screen.say(
                "Another `finetune local run` works on this state folder: it takes over from here."
            )
            return _follow(store, keys, screen, output)
    finally:
        screen.close()
    if interrupted:
        screen.say("Stopped. Everything is saved; the same command goes on where it stopped.")
        return INTERRUPTED
    return report(store, keys, screen, output)


def _tell(screen: Screen, key: Key, event: Event) -> None:
    screen.event(key.name, event.reason, event.message, is_warning=event.is_warning)


async def _drive(store: Store, keys: list[Key], screen: Screen) -> bool:
    driver = Driver(store, keys, partial(_tell, screen))
    presses = 0

    def interrupt() -> None:
        nonlocal presses
        presses += 1
        if presses == 1:
            screen.say("Stopping: saving a checkpoint. Press Ctrl-C again to stop at once.")
            driver.stop()
        else:
            driver.kill()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupt)

    def tick() -> None:
        for key in keys:
            resource = store.get(key) if key.kind == "FineTuneJob" else None
            if isinstance(resource, FineTuneJob):
                screen.progress(resource)

    await driver.run(tick)
    return presses > 0


def _follow(store: Store, keys: list[Key], screen: Screen, output: str) -> int:
    """Watch objects that another process drives, until they rest."""
    while True:
        resources = [resource for key in keys if (resource := store.get(key)) is not None]
        for key in keys:
            resource = store.get(key)
            if isinstance(resource, FineTuneJob):
                screen.progress(resource)
        resting = ("Succeeded", "Failed", "Ready", "Suspended")
        if all(
            r.status.phase in resting and r.status.observed_generation == r.metadata.generation
            for r in resources
        ):
            return report(store, keys, screen, output)
        time.sleep(FOLLOW_SECONDS)


def report(store: Store, keys: list[Key], screen: Screen, output: str) -> int:
    """Say how everything ended, and what to do next; return the exit code."""
    resources = [(key, resource) for key in keys if (resource := store.get(key)) is not None]
    if output == "json":
        print(
            json.dumps(
                [{"kind": key.kind, **dump(resource)} for key, resource in resources],
                ensure_ascii=False,
            )
        )
    good = True
    for key, resource in resources:
        status = resource.status
        fine = status.phase in ("Succeeded", "Ready", "Suspended")
        good = good and fine
        screen.close()
        if not fine or key.kind != "DatasetRegistration":
            colour = "green" if fine else "red"
            head = f"[bold {colour}]{status.phase}[/] {key.kind} {key.name} ({status.reason})"
            screen.say(f"{head}: {escaped(status.message)}")
        if isinstance(resource, FineTuneJob) and status.phase == "Succeeded":
            _tell_results(store, key, resource, screen)
        elif not fine:
            screen.say(f"  More: finetune local describe {key.kind.lower()} {key.name}")
    return 0 if good else 1


def _tell_results(store: Store, key: Key, job: FineTuneJob, screen: Screen) -> None:
    for artifact in job.status.artifacts:
        path = artifact_path(store, job, artifact.uri)
        screen.say(f"  {artifact.kind:<12}{_short(path)}")
        if artifact.kind in ("adapter", "model"):
            screen.say(f"  {'log':<12}{_short(path / 'trainer_log.jsonl')}")
            screen.say(f"  {'plot':<12}{_short(path / 'loss.png')}")
    screen.say(f"  Next: finetune local chat {key.name} --compare")


def _short(path: Path) -> str:
    try:
        return os.path.relpath(path) if Path.cwd() in path.parents else str(path)
    except ValueError:
        return str(path)
