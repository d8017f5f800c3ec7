"""The real API server refuses what the CEL rules say, in their words; and what it takes stays as it is."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from finetune_api.crd import CRD_FOLDER, RESOURCES, resource_schema
from finetune_api.finetunejob import FROZEN_FIELDS
from finetune_api.yaml_reader import read_documents
from tests.builders import a_dataset, a_job, an_export, merged
from tests.cluster import Access
from tests.cluster.commands import ClusterError
from tests.cluster.fixtures import fresh_namespace
from tests.e2e.lab import Lab
from tests.integration.test_bad_inputs import BASES, ROWS

LEAST_CASES = 30
MOST_CRD_BYTES = 256 << 10
STARTED = {"status": {"run": 1, "attempts": [
    {"step": "prepare", "number": 1, "startTime": "2026-01-01T00:00:00Z"}]}}  # fmt: skip
OTHER = {
    "model": {"uri": "pvc://other/model"}, "method": "full", "lora": {"rank": 5},
    "datasets": [{"name": "others"}], "evalDatasets": [{"name": "others"}],
    "data": {"maxLength": 77}, "training": {"seed": 77}, "checkpoint": {"everySteps": 77},
    "failurePolicy": {"maxRestarts": 77}, "exports": [{"name": "x", "format": "huggingface"}],
    "storage": {"size": "7Gi"}, "workers": {"processesPerNode": 2}, "output": {"uri": "pvc://other"},
}  # fmt: skip


def messages(schema: Any) -> Iterator[str]:
    """Yield the message of every CEL rule in a schema."""
    if isinstance(schema, dict):
        yield from (rule["message"] for rule in schema.get("x-kubernetes-validations", ()))
        for part in schema.values():
            yield from messages(part)


KNOWN = {message for resource in RESOURCES for message in messages(resource_schema(resource))}
BY_RULE = [
    row for row in ROWS
    if row["class"] == "schema" and "changes" in row
    and any(all(words in f"`{row['contains'][0]}` {message}" or words in message
                for words in row["contains"][1:]) for message in KNOWN)
]  # fmt: skip


@pytest.fixture(scope="module")
def lab(with_crds: Access) -> Iterator[Lab]:
    """Return a namespace in which nothing reconciles."""
    with fresh_namespace(with_crds) as name:
        yield Lab(with_crds, name)


def refusal(lab: Lab, body: dict[str, Any], *, verb: str = "apply") -> str:
    """Return what the API server says to a manifest that it refuses."""
    with pytest.raises(ClusterError) as error:
        lab.kubectl(verb, "--filename=-", given=json.dumps(body))
    return str(error.value)


@pytest.mark.parametrize("row", [pytest.param(row, id=row["name"]) for row in BY_RULE])
def test_a_rule_of_the_table(lab: Lab, row: dict[str, Any]) -> None:
    base = BASES[row.get("kind", "FineTuneJob")]()
    if (old := row.get("old")) is not None:
        name = {"metadata": {"name": f"r-{abs(hash(row['name'])) % 10**8}"}}
        base = merged(base, name)
        lab.apply(merged(base, {k: v for k, v in old.items() if k != "status"}))
        if status := old.get("status"):
            patch_status(lab, base, {"status": status})
    # As kubectl create and replace do: server-side apply has words of its own for double keys.
    said = refusal(lab, merged(base, row["changes"]), verb="create" if old is None else "replace")
    # A message that depends on the values is no constant of the schema: the table has its words.
    is_known = any(message in said for message in KNOWN)
    assert is_known or all(words in said for words in row["contains"]), said


def patch_status(lab: Lab, body: dict[str, Any], status: dict[str, Any]) -> None:
    lab.kubectl(
        "patch", body["kind"].lower(), body["metadata"]["name"], "--subresource=status",
        "--type=merge", f"--patch={json.dumps(status)}",
    )  # fmt: skip


@pytest.fixture(scope="module")
def started(lab: Lab) -> dict[str, Any]:
    """Return a job whose first attempt was made."""
    job = a_job("started")
    lab.apply(job)
    patch_status(lab, job, STARTED)
    return job


@pytest.mark.parametrize("field", [*FROZEN_FIELDS, "workers", "output"])
def test_a_started_job_is_frozen(lab: Lab, started: dict[str, Any], field: str) -> None:
    if field == "stage":
        pytest.skip("there is one stage only")
    change = {"spec": {field: OTHER[field], **({"lora": None} if field == "method" else {})}}
    changed = merged(started, change)
    path = "output.uri" if field == "output" else field
    said = refusal(lab, changed)
    assert f"`spec.{path}` cannot change once the job has started" in said, said
    assert "raise `spec.rerun` in the same change to run again" in said
    # Together with a rerun it may.
    rerun = merged(changed, {"spec": {"rerun": 1}})
    lab.kubectl("apply", "--dry-run=server", "--filename=-", given=json.dumps(rerun))


def test_there_are_enough_cases() -> None:
    assert len(BY_RULE) + len(FROZEN_FIELDS) + 1 >= LEAST_CASES, (len(BY_RULE), len(FROZEN_FIELDS))


def test_crds_are_small_and_were_taken(lab: Lab) -> None:
    for path in sorted(CRD_FOLDER.glob("*.yaml")):
        assert path.stat().st_size < MOST_CRD_BYTES
        (document,) = read_documents(path.read_text("utf-8"), source=path.name)
        crd = json.loads(
            lab.cluster.kubectl("get", "crd", document["metadata"]["name"], "--output=json")
        )
        held = {c["type"]: c["status"] for c in crd["status"]["conditions"]}
        assert held["Established"] == held["NamesAccepted"] == "True"
        assert held.get("NonStructuralSchema", "False") == "False"


@pytest.mark.parametrize("make", [a_dataset, a_job, an_export], ids=lambda make: str(make.__name__))
def test_applied_twice_nothing_differs(lab: Lab, make: Any) -> None:
    body = make("twice", **({"source": {"uri": "pvc://x/rows.jsonl"}} if make is a_dataset else {}))
    text = json.dumps(body)
    lab.kubectl("apply", "--filename=-", given=text)
    assert "unchanged" in lab.kubectl("apply", "--filename=-", given=text)
    lab.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", given=text)
    first = lab.get(body["kind"].lower(), "twice")
    lab.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", given=text)
    assert (
        lab.get(body["kind"].lower(), "twice")["metadata"]["resourceVersion"]
        == (first["metadata"]["resourceVersion"])
    )


@pytest.mark.parametrize("make", [a_dataset, a_job, an_export], ids=lambda make: str(make.__name__))
def test_argo_sees_no_difference(lab: Lab, make: Any) -> None:
    """What was stored and what a dry run of it gives are the same, and lists hold nothing unasked."""
    body = make("argo")
    lab.kubectl(
        "apply", "--server-side", "--force-conflicts", "--filename=-", given=json.dumps(body)
    )
    stored = lab.get(body["kind"].lower(), "argo")
    predicted = json.loads(
        lab.kubectl(
            "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--output=json",
            "--filename=-", given=json.dumps(body),
        )
    )  # fmt: skip
    assert predicted["spec"] == stored["spec"]
    assert_no_defaults_in_lists(body["spec"], stored["spec"])


def assert_no_defaults_in_lists(given: Any, stored: Any) -> None:
    if isinstance(given, list):
        assert given == stored
    elif isinstance(given, dict):
        for key, value in given.items():
            assert_no_defaults_in_lists(value, stored[key])
