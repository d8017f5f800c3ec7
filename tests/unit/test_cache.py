"""Which changes of children wake their object."""

import json
from typing import Any

from finetune_operator.cluster.cache import Cache
from finetune_operator.plan import Key
from tests.fakes.api_server import FakeApiServer

LABELS = {
    "finetune.dev/kind": "FineTuneJob",
    "finetune.dev/name": "tiny",
    "finetune.dev/uid": "u",
}


def a_job(version: int, status: dict[str, Any], **metadata: Any) -> bytes:
    meta = {"name": "tiny-1", "namespace": "a", "uid": "j", "labels": LABELS, **metadata}
    meta["resourceVersion"] = str(version)
    return json.dumps({"metadata": meta, "spec": {}, "status": status}).encode()


def test_only_what_decisions_look_at_wakes() -> None:
    woken: list[Key] = []
    cache = Cache(FakeApiServer(), [], woken.append)  # type: ignore[arg-type]
    ended = {"conditions": [{"type": "Complete", "status": "True"}]}
    for version, body, wakes in (
        (1, {}, True),
        (2, {"active": 1, "startTime": "2026-01-01T00:00:00Z"}, False),
        (3, {"active": 1, "ready": 1}, False),
        (4, ended, True),
        (5, {**ended, "succeeded": 1}, False),
    ):
        woken.clear()
        cache.learn_job(a_job(version, body))
        assert woken == ([Key("FineTuneJob", "a", "tiny")] if wakes else []), version
    woken.clear()
    cache.learn_job(a_job(6, ended, deletionTimestamp="2026-01-01T00:00:00Z"))
    assert woken
