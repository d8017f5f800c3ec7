"""What is shown while something runs: events and progress."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from finetune_api.finetunejob import FineTuneJob

LOG_LINES_EVERY_SECONDS = 5.0


class Screen:
    """Shows events and progress: a bar in a terminal, plain lines in a log, nothing with json."""

    def __init__(self, output: str) -> None:
        """Choose the manner."""
        self._console = Console(stderr=output == "json", highlight=False, soft_wrap=True)
        self._is_json = output == "json"
        self._bar: Progress | None = None
        self._tasks: dict[str, Any] = {}
        self._last: dict[str, tuple[float, int]] = {}
        if self._console.is_terminal and not self._is_json:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(),
                TextColumn("{task.completed}/{task.total}  {task.fields[told]}"), TimeElapsedColumn(),
                console=self._console,
            )  # fmt: skip
            self._bar.start()

    def event(self, name: str, reason: str, message: str, *, is_warning: bool) -> None:
        """Tell a transition."""
        if self._is_json:
            return
        mark = "[yellow]![/]" if is_warning else "[green]·[/]"
        self._console.print(f"{mark} {name}: {reason}: {escaped(message)}")

    def say(self, text: str) -> None:
        """Print a line of our own."""
        if not self._is_json:
            self._console.print(text)

    def progress(self, job: FineTuneJob) -> None:
        """Show how far a job is."""
        key, name = job.metadata.key, job.metadata.name
        progress, metrics = job.status.progress, job.status.metrics
        is_old = job.status.run != job.spec.rerun + 1
        if progress is None or is_old or self._is_json or not progress.total_steps:
            return
        told = f"loss {metrics.loss or '-'}" if metrics else ""
        told += f"  eta {progress.eta}" if progress.eta else ""
        if self._bar is not None:
            if key not in self._tasks:
                self._tasks[key] = self._bar.add_task(name, total=progress.total_steps, told=told)
            self._bar.update(self._tasks[key], completed=progress.step, told=told)
            return
        then, step = self._last.get(key, (0.0, -1))
        due = (
            time.monotonic() - then >= LOG_LINES_EVERY_SECONDS
            or progress.step == progress.total_steps
        )
        if due and step != progress.step:
            self._last[key] = (time.monotonic(), progress.step)
            self._console.print(f"  {name}: step {progress.summary}  {told}")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


def escaped(text: str) -> str:
    """Return a text in which rich sees no markup."""
    return text.replace("[", "\\[")
