"""`finetune local run`: apply, drive to the end, show what happens."""

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from finetune_api.errors import Refusal
from finetune_api.finetunejob import FineTuneJob
from finetune_api.objects import dump
from finetune_cli.manifests import Manifest
from finetune_operator.local.driver import AlreadyDriven, Driver, driving
from finetune_operator.local.store import Store
from finetune_operator.local.tools import artifact_path
from finetune_operator.plan import Event, Key

LOG_LINES_EVERY_SECONDS = 5.0
FOLLOW_SECONDS = 0.5
INTERRUPTED = 130


class Screen:
    """Shows events and progress: a bar in a terminal, plain lines in a log, nothing with json."""

    def __init__(self, output: str) -> None:
        """Choose the manner."""
        self._console = Console(stderr=output == "json", highlight=False, soft_wrap=True)
        self._is_json = output == "json"
        self._bar: Progress | None = None
        self._tasks: dict[Key, Any] = {}
        self._last: dict[Key, tuple[float, int]] = {}
        if self._console.is_terminal and not self._is_json:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(),
                TextColumn("{task.completed}/{task.total}  {task.fields[told]}"), TimeElapsedColumn(),
                console=self._console,
            )  # fmt: skip
            self._bar.start()

    def event(self, key: Key, event: Event) -> None:
        """Tell a transition."""
        if self._is_json:
            return
        mark = "[yellow]![/]" if event.is_warning else "[green]·[/]"
        self._console.print(f"{mark} {key.name}: {event.reason}: {_escaped(event.message)}")

    def say(self, text: str) -> None:
        """Print a line of our own."""
        if not self._is_json:
            self._console.print(text)

    def progress(self, key: Key, job: FineTuneJob) -> None:
        """Show how far a job is."""
        progress, metrics = job.status.progress, job.status.metrics
        is_old = job.status.run != job.spec.rerun + 1
        if progress is None or is_old or self._is_json or not progress.total_steps:
            return
        told = f"loss {metrics.loss or '-'}" if metrics else ""
        told += f"  eta {progress.eta}" if progress.eta else ""
        if self._bar is not None:
            if key not in self._tasks:
                self._tasks[key] = self._bar.add_task(
                    key.name, total=progress.total_steps, told=told
                )
            self._bar.update(self._tasks[key], completed=progress.step, told=told)
            return
        then, step = self._last.get(key, (0.0, -1))
        due = (
            time.monotonic() - then >= LOG_LINES_EVERY_SECONDS
            or progress.step == progress.total_steps
        )
        if due and step != progress.step:
            self._last[key] = (time.monotonic(), progress.step)
            self._console.print(f"  {key.name}: step {progress.summary}  {told}")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")


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


async def _drive(store: Store, keys: list[Key], screen: Screen) -> bool:
    driver = Driver(store, keys, screen.event)
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
                screen.progress(key, resource)

    await driver.run(tick)
    return presses > 0


def _follow(store: Store, keys: list[Key], screen: Screen, output: str) -> int:
    """Watch objects that another process drives, until they rest."""
    while True:
        resources = [resource for key in keys if (resource := store.get(key)) is not None]
        for key in keys:
            resource = store.get(key)
            if isinstance(resource, FineTuneJob):
                screen.progress(key, resource)
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
            screen.say(f"{head}: {_escaped(status.message)}")
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


def fail(refusal: Refusal) -> int:
    """Print a refusal; return the exit code."""
    for problem in refusal.problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2
