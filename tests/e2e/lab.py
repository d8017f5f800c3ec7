"""A namespace with a tiny model in it: jobs to apply, to wait for, to compare."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.builders import a_dataset, a_job, an_export
from tests.cluster import Access, Cluster
from tests.fakes.tiny import alpaca_rows

Body = dict[str, Any]
PINNED = [{"name": "OMP_NUM_THREADS", "value": "1"}]
POLL_SECONDS = 0.5
"""Each look starts a kubectl, which the pods that it waits for pay for."""
WHOLE = ("--output=json", "--show-managed-fields")
WAIT_SECONDS = 240.0
ROWS = "\n".join(json.dumps(row) for row in alpaca_rows(24))


def apply_crds(cluster: Access) -> None:
    """Make our kinds known to a cluster."""
    for path in crd_paths():
        cluster.kubectl("apply", "--server-side", "--force-conflicts", f"--filename={path}")
    cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")


def crd_paths() -> list[Path]:
    """Return the files of our kinds."""
    return sorted((Path(__file__).parents[2] / "crds").glob("*.yaml"))


@dataclass
class Lab:
    """A namespace, and the kubectl that works on it."""

    cluster: Access
    namespace: str

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        """Run kubectl in the namespace."""
        return self.cluster.kubectl("--namespace", self.namespace, *arguments, input=given)

    def apply(self, *bodies: Body) -> None:
        """Apply manifests as a user does."""
        text = "\n---\n".join(json.dumps(body) for body in bodies)
        self.kubectl("apply", "--filename=-", given=text)

    def get(self, kind: str, name: str) -> Body:
        """Return an object."""
        found: Body = json.loads(self.kubectl("get", kind, name, *WHOLE))
        return found

    def listed(self, kind: str, selector: str = "") -> list[Body]:
        """Return all objects of a kind."""
        chosen = [f"--selector={selector}"] if selector else []
        found: list[Body] = json.loads(self.kubectl("get", kind, *chosen, *WHOLE))["items"]
        return found

    def wait(
        self,
        kind: str,
        name: str,
        holds: Callable[[Body], bool],
        *,
        what: str,
        seconds: float = WAIT_SECONDS,
    ) -> Body:
        """Return an object once something holds of it; fail with the whole story otherwise."""
        until = time.monotonic() + seconds
        while True:
            body = self.get(kind, name)
            if holds(body):
                return body
            if time.monotonic() > until:
                raise AssertionError(f"{kind}/{name}: not {what} in {seconds} s\n{self.story()}")
            time.sleep(POLL_SECONDS)

    def finished(
        self, name: str, *, kind: str = "finetunejob", seconds: float = WAIT_SECONDS
    ) -> Body:
        """Return an object that has ended, well or not."""
        return self.wait(
            kind, name, lambda body: has(body, "Finished"), what="finished", seconds=seconds
        )

    def succeeded(
        self, name: str, *, kind: str = "finetunejob", seconds: float = WAIT_SECONDS
    ) -> Body:
        """Return an object that has ended well; fail with the whole story otherwise."""
        body = self.finished(name, kind=kind, seconds=seconds)
        assert has(body, "Succeeded"), self.story()
        return body

    def folder(self, claim: str) -> Path:
        """Return the folder behind a claim."""
        assert isinstance(self.cluster, Cluster), "files of claims are seen on an own cluster only"
        return self.cluster.volume_path(self.namespace, claim)

    def output(self, name: str, run: int = 1) -> Path:
        """Return the folder of a run's result."""
        return self.folder(f"{name}-output") / self.namespace / name / f"run-{run}"

    def work(self, name: str) -> Path:
        """Return the folder of a job's working claim."""
        uid = self.get("finetunejob", name)["metadata"]["uid"]
        return self.folder(f"{name}-{uid[:8]}-work")

    def wait_for_checkpoint(self, name: str, *, seconds: float = WAIT_SECONDS) -> Path:
        """Return the first complete checkpoint of a job that goes on."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            body = self.get("finetunejob", name)
            if body.get("status", {}).get("resolved"):
                found = sorted(
                    self.work(name).glob("runs/run-*/attempt-*/checkpoint-*/manifest.json")
                )
                if found:
                    return found[0].parent
            assert not has(body, "Finished"), (
                f"it ended before a checkpoint was seen\n{self.story()}"
            )
            time.sleep(0.3)
        raise AssertionError(f"no checkpoint of {name}\n{self.story()}")

    def pod_of(self, name: str, step: str) -> str:
        """Return the newest pod of a step."""
        pods = self.listed("pods", f"finetune.dev/name={name},finetune.dev/step={step}")
        pods.sort(key=lambda pod: pod["metadata"]["creationTimestamp"])
        return str(pods[-1]["metadata"]["name"])

    def story(self) -> str:
        """Return all that explains what happened: objects, events, logs."""
        kinds = "finetunejob,datasetregistration,modelexport,job,pod,pvc,event"
        parts = [self.kubectl("get", kinds, "--output=wide")]
        parts.append(
            self.kubectl("get", "finetunejob,datasetregistration,modelexport", "--output=yaml")
        )
        for pod in self.listed("pods"):
            name = pod["metadata"]["name"]
            try:
                parts.append(f"--- {name}\n{self.kubectl('logs', name, '--tail=40')}")
            except Exception as error:  # a story with a gap beats none
                parts.append(f"--- {name}: {error}")
        return "\n".join(parts)

    def dataset(self, name: str = "rows", **spec: Any) -> Body:
        """Return a registration whose rows stand in it."""
        return a_dataset(name, **{"source": {"uri": None, "inline": ROWS}, **spec})

    def job(self, name: str = "tiny", **spec: Any) -> Body:
        """Return a job on the tiny model of the claim `models`, long enough to be broken."""
        body = a_job(
            name,
            model={"uri": "pvc://models/model"},
            training={"maxSteps": 400},
            workers={"gpusPerNode": 0, "env": PINNED, "terminationGracePeriodSeconds": 20},
            checkpoint={"everySteps": 20},
        )
        return _deep(body, {"spec": spec})

    def export(self, name: str = "merged", **spec: Any) -> Body:
        """Return an export of the job."""
        return an_export(name, **spec)


def _deep(base: Body, changes: Body) -> Body:
    from tests.builders import merged

    return merged(base, changes)


def has(body: Body, condition: str) -> bool:
    """Tell whether a condition of an object holds, for its present spec."""
    status = body.get("status", {})
    if status.get("observedGeneration") != body["metadata"]["generation"]:
        return False
    return any(
        c["type"] == condition and c["status"] == "True" for c in status.get("conditions", [])
    )


@dataclass(frozen=True)
class Result:
    """What must be the same however a run was disturbed."""

    adapter: bytes
    losses: list[tuple[int, float]]


def result(folder: Path) -> Result:
    """Return the adapter, byte by byte, and the loss of every step."""
    lines = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text().splitlines()]
    return Result(
        adapter=(folder / "adapter_model.safetensors").read_bytes(),
        losses=[(line["current_steps"], line["loss"]) for line in lines if "loss" in line],
    )
