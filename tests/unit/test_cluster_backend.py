"""What plans become on an API server that refuses, forgets and holds on."""

import asyncio
from typing import Any

import orjson
import pytest

from finetune_api.contract import JobFile
from finetune_operator.cluster import observe, refusals
from finetune_operator.cluster.backend import FINALIZER, ClusterBackend
from finetune_operator.cluster.cache import Cache
from finetune_operator.cluster.client import ApiError
from finetune_operator.kinds import DECISIONS
from finetune_operator.loop import Conflict, reconcile
from finetune_operator.plan import Key
from finetune_operator.settings import Images, Settings
from tests.builders import a_dataset, a_job, an_export, merged
from tests.fakes.api_server import FakeApiServer
from tests.fakes.world import PREPARED

KEY = Key("DatasetRegistration", "default", "rows")
PATH = "/apis/finetune.dev/v1alpha1/namespaces/default"
FORBIDDEN = ApiError(403, "exceeded quota: count/jobs.batch", reason="Forbidden")
ENDING = ApiError(403, "unable to create new content in namespace x because it is being terminated")
INVALID = ApiError(422, "metadata.labels: Invalid value", reason="Invalid")


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Cluster:
    """One operator on a fake API server, whose every write is seen at once."""

    def __init__(self, manifest: dict[str, Any], **metadata: Any) -> None:
        self.api = FakeApiServer()
        self.woken: list[float] = []
        self.cache = Cache(self.api, [], lambda key: None)  # type: ignore[arg-type]
        self.backend = ClusterBackend(
            self.api,  # type: ignore[arg-type]
            self.cache,
            Settings(images=Images(trainer="trainer:1")),
            lambda key, seconds: self.woken.append(seconds),
        )
        self.kind, name = manifest["kind"], manifest["metadata"]["name"]
        self.key = Key(self.kind, "default", name)
        self.path = f"{PATH}/{self.kind.lower()}s/{name}"
        meta = {"name": name, "namespace": "default", "uid": "u1", "generation": 1, **metadata}
        self.cache.learn_custom(
            self.kind, self.api._stored(self.path, {**manifest, "metadata": meta})
        )

    def look(self, times: int = 1) -> None:
        for _ in range(times):
            asyncio.run(reconcile(self.key, self.backend, DECISIONS))

    @property
    def status(self) -> dict[str, Any]:
        record = self.cache.custom(self.key)
        assert record is not None
        found: dict[str, Any] = orjson.loads(record.status)
        return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(refusals, "time", found)
    return found


def test_a_run_is_made_once() -> None:
    cluster = Cluster(a_dataset())
    cluster.look(4)
    assert len(cluster.api.made("jobs")) == len(cluster.api.made("configmaps")) == 1
    before = len(cluster.api.writes)
    cluster.look(3)
    assert len(cluster.api.writes) == before, "a steady state costs no writes"


@pytest.mark.parametrize("error", [FORBIDDEN, ENDING, INVALID, ApiError(500, "calling webhook x")])
def test_a_refused_child_is_told_and_tried_ever_later(clock: Clock, error: ApiError) -> None:
    cluster = Cluster(a_dataset())
    cluster.api.refusals["/jobs/"] = error
    cluster.look(3)
    assert (cluster.status["phase"], cluster.status["reason"]) == ("Queued", "ChildRefused")
    assert "Job 'rows-u1-" in cluster.status["message"]
    assert error.message in cluster.status["message"]
    before = len(cluster.api.writes)
    cluster.look(5)
    assert len(cluster.api.writes) == before, "no hot loop"
    assert cluster.woken[-1] == 5.0
    clock.now += 5.0
    cluster.look()
    clock.now += 5.0
    cluster.look()
    assert cluster.woken[-1] == 5.0, "the second pause is ten seconds"
    del cluster.api.refusals["/jobs/"]
    clock.now += 300.0
    cluster.look(2)
    assert cluster.status["reason"] != "ChildRefused"
    assert len(cluster.api.made("jobs")) == 1


def test_what_was_refused_as_invalid_is_not_frozen(clock: Clock) -> None:
    """Else a profile could be corrected as often as one likes."""
    cluster = Cluster(a_dataset())
    cluster.api.refusals["/jobs/"] = INVALID
    cluster.look(3)
    assert cluster.api.made("configmaps") == []


def test_a_name_taken_by_something_else_is_told(clock: Clock) -> None:
    cluster = Cluster(a_dataset())
    path = "/api/v1/namespaces/default/configmaps"
    cluster.api.refusals["/jobs/"] = FORBIDDEN
    cluster.look()
    name = cluster.api.made("configmaps")[0]
    cluster.api.objects[f"{path}/{name}"]["metadata"]["labels"] = {}
    clock.now += 300.0
    cluster.look(2)
    assert cluster.status["reason"] == "ChildRefused"
    assert "belongs to something else" in cluster.status["message"]


def test_a_child_that_is_being_removed_is_waited_for() -> None:
    cluster = Cluster(a_dataset())
    cluster.api.refusals["/jobs/"] = ApiError(0, "away")
    with pytest.raises(ApiError):
        cluster.look()
    name = cluster.api.made("configmaps")[0]
    path = f"/api/v1/namespaces/default/configmaps/{name}"
    cluster.api.objects[path]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    with pytest.raises(Conflict, match="being removed"):
        cluster.look()


def test_what_cannot_be_recorded_is_not_made() -> None:
    cluster = Cluster(a_dataset())
    cluster.api.refusals["/status"] = ApiError(0, "away")
    with pytest.raises(ApiError):
        cluster.look()
    assert cluster.api.made("jobs") == cluster.api.made("configmaps") == []
    cluster.api.refusals.clear()
    cluster.look()
    assert len(cluster.api.made("jobs")) == 1


def test_an_object_that_is_gone_is_no_error() -> None:
    cluster = Cluster(a_dataset())
    del cluster.api.objects[cluster.path]
    with pytest.raises(Conflict, match="gone"):
        cluster.look()


DELETED = {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FINALIZER]}
EXPORT = merged(an_export(), {"spec": {"retain": "Delete", "destination": {"uri": "pvc://shared"}}})


def held(cluster: Cluster) -> list[str]:
    found: list[str] = cluster.api.objects[cluster.path]["metadata"]["finalizers"]
    return found


def test_an_output_is_removed_before_its_object() -> None:
    cluster = Cluster(EXPORT, **DELETED)
    cluster.look()
    assert len(cluster.api.made("jobs")) == 1
    assert held(cluster) == []


def test_nothing_holds_an_object_of_a_namespace_that_goes() -> None:
    cluster = Cluster(EXPORT, **DELETED)
    cluster.api.refusals["/jobs/"] = ENDING
    cluster.look()
    assert held(cluster) == []


def test_an_output_that_cannot_be_removed_is_told() -> None:
    cluster = Cluster(EXPORT, **DELETED)
    cluster.api.refusals["/jobs/"] = FORBIDDEN
    with pytest.raises(Conflict, match="exceeded quota"):
        cluster.look()
    assert held(cluster) == [FINALIZER]
    asyncio.run(cluster.backend.events.send_next())
    assert len(cluster.api.made("events")) == 1


def test_an_object_that_cannot_be_read_can_be_deleted() -> None:
    cluster = Cluster(merged(EXPORT, {"spec": {"format": "of-another-release"}}), **DELETED)
    cluster.look()
    assert held(cluster) == []


@pytest.mark.parametrize(("kind", "stays"), [("ModelExport", False), ("FineTuneJob", True)])
def test_an_output_claim_goes_with_whom_it_was_made_for(kind: str, stays: bool) -> None:
    """An export and a job of one name have claims of one name: the other's results are in it."""
    cluster = Cluster(merged(an_export(), {"spec": {"retain": "Delete"}}), **DELETED)
    path = "/api/v1/namespaces/default/persistentvolumeclaims/merged-output"
    marks = {"finetune.dev/kind": kind, "finetune.dev/name": "merged"}
    cluster.api.objects[path] = {"metadata": {"name": "merged-output", "uid": "c", "labels": marks}}
    cluster.look()
    assert (path in cluster.api.objects) == stays


def a_step(name: str, step: str, *conditions: str) -> dict[str, Any]:
    marks = {"kind": "FineTuneJob", "name": "tiny", "uid": "u1", "run": "1", "step": step}
    meta = {
        "name": name,
        "namespace": "default",
        "uid": f"uid-of-{name}",
        "resourceVersion": "7",
        "labels": {f"finetune.dev/{key}": value for key, value in marks.items()},
        "annotations": {"finetune.dev/config": f"{name}-config"},
    }
    ended = [{"type": type_, "status": "True"} for type_ in conditions]
    return {"metadata": meta, "status": {"conditions": ended}}


def test_what_was_prepared_is_known_while_training_runs() -> None:
    """An ended pod goes with its node, and what an operator remembers of it with its process."""
    cluster = Cluster(a_job())
    cluster.cache.learn_job(orjson.dumps(a_step("p", "prepare", "Complete")))
    cluster.cache.learn_job(orjson.dumps(a_step("t", "train")))
    file = JobFile(step="train", namespace="default", name="tiny", uid="u1", prepared=PREPARED)
    path = "/api/v1/namespaces/default/configmaps/t-config"
    cluster.api.objects[path] = {"data": {"job.json": file.model_dump_json(by_alias=True)}}
    for _ in range(2):
        found = asyncio.run(cluster.backend.observe(cluster.key))
        assert found is not None
        end = found[1].runs["p"].termination
        assert end is not None
        assert (end.exit_code, end.prepared) == (0, PREPARED)
        cluster.api.objects.pop(path, None)  # it is read once


def test_the_working_claim_goes_before_the_runs() -> None:
    """While there are runs it is decided again: a claim whose removal failed is not forgotten."""
    cluster = Cluster(a_job(ttlSecondsAfterFinished=0))
    ended = {"type": "Finished", "status": "True", "reason": "x", "lastTransitionTime": "x"}
    status = {
        "run": 1,
        "observedGeneration": 1,
        "conditions": [ended],
        "completionTime": "2026-01-01T00:00:00Z",
    }
    body = {**cluster.api.objects[cluster.path], "status": status}
    cluster.cache.learn_custom("FineTuneJob", cluster.api._stored(cluster.path, body))
    cluster.cache.learn_job(orjson.dumps(a_step("p", "prepare", "Complete")))
    path = "/api/v1/namespaces/default/persistentvolumeclaims/tiny-u1-work"
    marks = {"finetune.dev/uid": "u1"}
    cluster.api.objects[path] = {"metadata": {"uid": "c", "labels": marks}}
    cluster.look()
    deleted = [name.rsplit("/", 1)[1] for verb, name in cluster.api.writes if verb == "DELETE"]
    assert deleted == ["tiny-u1-work", "p"]


def test_a_slow_clock_keeps_no_reason_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The API server's clock may be an hour ahead of the operator's."""
    cluster, clock = Cluster(a_job()), Clock()
    monkeypatch.setattr(observe, "time", clock)
    child = a_step("p", "prepare")
    child["metadata"]["creationTimestamp"] = "2999-01-01T00:00:00Z"
    cluster.cache.learn_job(orjson.dumps({**child, "spec": {"suspend": True}}))
    told = []
    for _ in range(2):
        found = asyncio.run(cluster.backend.observe(cluster.key))
        assert found is not None
        told.append(found[1].runs["p"].waiting)
        clock.now += 5.0
    assert told[0] is None
    assert told[1] is not None
    assert told[1].reason == "Queued"
