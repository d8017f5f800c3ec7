"""Lines of the log: whole JSON objects that say which object, run and attempt they are about."""

import json
import logging
from collections.abc import Iterator

import pytest

from finetune_operator.logs import JsonLines, about, note
from finetune_operator.plan import Key

KEY = Key("FineTuneJob", "team", "tiny")


@pytest.fixture
def lines() -> Iterator[list[dict[str, object]]]:
    found: list[dict[str, object]] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = self.format(record)
            assert "\n" not in text
            found.append(json.loads(text))

    handler, log = Kept(), logging.getLogger("of.this.test")
    handler.setFormatter(JsonLines())
    log.addHandler(handler)
    yield found
    log.removeHandler(handler)


def test_a_line_says_what_it_is_about(lines: list[dict[str, object]]) -> None:
    log = logging.getLogger("of.this.test")
    with about(KEY):
        note(run=2, attempt=None)
        log.warning("one\ntwo %s", "ü")
    log.warning("after")
    assert lines[0] | {"time": ""} == {
        "time": "", "level": "WARNING", "logger": "of.this.test", "message": "one\ntwo ü",
        "kind": "FineTuneJob", "namespace": "team", "name": "tiny", "run": 2,
    }  # fmt: skip
    assert "kind" not in lines[1]


def test_a_trace_stays_in_its_line(lines: list[dict[str, object]]) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("of.this.test").exception("failed")
    assert "ValueError: broken" in str(lines[0]["trace"])
