"""The operator's log: one JSON object a line, with the object, run and attempt that it is about."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from finetune_operator.plan import Key

_about: ContextVar[dict[str, str | int]] = ContextVar("about", default={})  # noqa: B039  # never changed in place
TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"


@contextmanager
def about(key: Key) -> Iterator[None]:
    """Say of every line within which object it is about."""
    token = _about.set({"kind": key.kind, "namespace": key.namespace, "name": key.name})
    try:
        yield
    finally:
        _about.reset(token)


def note(*, run: int | None = None, attempt: int | None = None) -> None:
    """Add the run and the attempt, once they are known."""
    known = {"run": run, "attempt": attempt}
    _about.set({**_about.get(), **{name: value for name, value in known.items() if value}})


class JsonLines(logging.Formatter):
    """One JSON object a record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as one line."""
        line: dict[str, str | int] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_about.get(),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(form: Literal["json", "text"]) -> None:
    """Write the log of this process to its error output."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("kopf", "aiohttp.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
