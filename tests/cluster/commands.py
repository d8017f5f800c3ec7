"""Commands that are run, and questions that are asked until they are answered."""

import fcntl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

SHOWN_LINES = 15


class ClusterError(RuntimeError):
    """The test cluster cannot do what was asked; the message says why and what to do."""


def run(
    *command: str | Path,
    given: str | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    seconds: float = 1800,
) -> str:
    """Run a command to its end and return what it printed.

    Raises:
        ClusterError: It is not installed, failed or took too long; with its last lines.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, input=given, env=environment, cwd=folder, timeout=seconds,
            capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise ClusterError(f"`{words[0]}` is not installed: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"`{' '.join(words)}` did not end within {seconds:.0f} s") from error
    if done.returncode != 0:
        said = tail(done.stderr or done.stdout)
        raise ClusterError(f"`{' '.join(words)}` failed with {done.returncode}:\n{said}")
    return done.stdout


def works(*command: str | Path, given: str | None = None) -> bool:
    """Return whether a command ends well."""
    try:
        run(*command, given=given)
    except ClusterError:
        return False
    return True


def tail(text: str, lines: int = SHOWN_LINES) -> str:
    """Return the last lines of a text."""
    return "\n".join(text.strip().splitlines()[-lines:])


def wait_until(
    question: Callable[[], bool], *, what: str, seconds: float = 60, log: Path | None = None
) -> None:
    """Ask until the answer is yes.

    Raises:
        ClusterError: It never was; with the end of the log.
    """
    until = time.monotonic() + seconds
    while not question():
        if time.monotonic() > until:
            last = tail(log.read_text(errors="replace")) if log and log.exists() else ""
            where = f"\nThe end of {log}:\n{last}" if last else ""
            raise ClusterError(f"after {seconds:.0f} s still not: {what}{where}")
        time.sleep(0.1)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Let one process at a time do what follows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
