"""A world in memory that does what plans say: enough to walk a job through its life without I/O."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api.contract import (
    ErrorReport,
    ExitCode,
    ExportResult,
    PreparedModel,
    PrepareResult,
    Snapshot,
    Termination,
    TrainResult,
    ValidateResult,
)
from finetune_api.datasetregistration import DatasetRegistration
from finetune_api.finetunejob import FineTuneJob
from finetune_api.modelexport import ModelExport, Verification
from finetune_api.objects import Resource, parse
from finetune_api.resolve import Machine
from finetune_api.status import Artifact, Checkpoints, CheckpointState, DataCounts, Progress
from finetune_operator.kinds import DECISIONS
from finetune_operator.plan import Observed, ObservedRun, Plan, StepRun

START = datetime(2026, 1, 1, tzinfo=UTC)


class World:
    """One namespace, its objects, its runs and its clock."""

    def __init__(self, *manifests: dict[str, Any]) -> None:
        self.now = START
        self.machine: Machine | None = Machine()
        self.objects: dict[tuple[str, str], Resource] = {}
        self.runs: dict[str, ObservedRun] = {}
        self.made: dict[str, StepRun] = {}
        self.order: list[str] = []
        self.removed: list[str] = []
        for number, manifest in enumerate(manifests):
            body = {**manifest, "metadata": {**manifest["metadata"], "uid": f"{number:08d}-uid"}}
            resource = parse(body)
            self.objects[type(resource).__name__, resource.metadata.name] = resource

    @property
    def job(self) -> FineTuneJob:
        return next(o for o in self.objects.values() if isinstance(o, FineTuneJob))

    @property
    def export(self) -> ModelExport:
        return next(o for o in self.objects.values() if isinstance(o, ModelExport))

    def change(self, kind: str, **spec: Any) -> None:
        """Change fields of an object's spec, as an update would."""
        key = next(k for k in self.objects if k[0] == kind)
        old = self.objects[key]
        metadata = old.metadata.model_copy(update={"generation": old.metadata.generation + 1})
        self.objects[key] = old.model_copy(
            update={"spec": old.spec.model_copy(update=spec), "metadata": metadata}
        )

    def delete(self, kind: str) -> None:
        key = next(k for k in self.objects if k[0] == kind)
        old = self.objects[key]
        metadata = old.metadata.model_copy(update={"deletion_timestamp": "2026-01-01T00:00:00Z"})
        self.objects[key] = old.model_copy(update={"metadata": metadata})

    def observed(self, key: tuple[str, str]) -> Observed:
        mine = {n: r for n, r in self.runs.items() if self.made[n].owner[::2] == key}
        return Observed(
            runs=mine,
            datasets={
                n: o for (_, n), o in self.objects.items() if isinstance(o, DatasetRegistration)
            },
            jobs={n: o for (_, n), o in self.objects.items() if isinstance(o, FineTuneJob)},
            job_runs={self.job.metadata.name: self.runs}
            if any(k[0] == "FineTuneJob" for k in self.objects)
            else {},
            machine=self.machine,
        )

    def decide(self, key: tuple[str, str]) -> Plan:
        resource = self.objects[key]
        return DECISIONS[key[0]](resource, self.observed(key), self.now)

    def step(self, key: tuple[str, str]) -> Plan:
        """Decide once and do what the plan says."""
        plan = self.decide(key)
        if plan.status is not None:
            self.objects[key] = self.objects[key].model_copy(update={"status": plan.status})
        for run in plan.runs:
            assert run.name not in self.runs, "a run is made once"
            self.made[run.name] = run
            self.order.append(run.name)
            self.runs[run.name] = ObservedRun(
                run.name,
                run.job_file.run,
                run.job_file.step,
                is_running=True,
                started_at=self.now.timestamp(),
            )
        for name in plan.stops:
            self.end(name, ExitCode.EVICTED, requested=True)
        for name in plan.removals:
            self.runs.pop(name, None)
            self.removed.append(name)
        if plan.releases_object:
            del self.objects[key]
        return plan

    def settle(self) -> None:
        """Decide until nothing changes; a world that never settles is an error."""
        for _ in range(50):
            before = (dict(self.objects), dict(self.runs))
            for key in list(self.objects):
                if key in self.objects:
                    self.step(key)
            if (dict(self.objects), dict(self.runs)) == before:
                return
        raise AssertionError("decisions do not come to rest")

    def running(self) -> list[str]:
        return [run.name for run in self.runs.values() if run.is_running]

    def end(
        self,
        name: str,
        code: int = 0,
        *,
        message: str = "broken",
        step: int = 0,
        requested: bool = False,
        resumed: int = 0,
    ) -> None:
        """End a run with a result or a failure."""
        run = self.runs[name]
        if not run.is_running:
            return
        snapshot = Snapshot(
            progress=Progress(
                step=step,
                total_steps=6,
                summary=f"{step}/6",
                sequence=1,
                resumed_from_step=resumed or None,
            ),  # fmt: skip
            checkpoints=Checkpoints(latest=CheckpointState(step=step, uri="x") if step else None),
        )
        end = Termination(exit_code=code, snapshot=snapshot, stop_was_requested=requested)
        if code:
            end = end.model_copy(update={"error": ErrorReport(message=message)})
        else:
            end = end.model_copy(update=RESULTS[self.made[name].job_file.step])
        self.runs[name] = replace(
            run, is_running=False, termination=end, snapshot=snapshot, ended_at=self.now.timestamp()
        )

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def finish_all(self) -> None:
        """Let every step succeed until none is left."""
        self.settle()
        while running := self.running():
            for name in running:
                self.end(name)
            self.settle()


PREPARED = PrepareResult(
    model=PreparedModel(folder="models/x", revision="sha256:1", parameters=70_000, max_length=512),
    data_folder="data/y",
    data=DataCounts(rows=240, eval_rows=0, tokens=9000, trained_tokens=4000),
    memory_bytes=1 << 30,
    trainable_parameters=1000,
)
ADAPTER = Artifact(kind="adapter", uri="pvc://tiny-output/default/tiny/run-1", size_bytes=1)
RESULTS: dict[str, dict[str, Any]] = {
    "validate": {
        "validated": ValidateResult(
            format="alpaca",
            purpose="conversation",
            rows=240,
            invalid_rows=0,
            size_bytes=1,
            digest="sha256:d",
        )
    },
    "prepare": {"prepared": PREPARED},
    "train": {"trained": TrainResult(steps=6, total_steps=6, artifacts=[ADAPTER])},
    "export": {
        "exported": ExportResult(
            artifact=Artifact(
                kind="huggingface", uri="pvc://tiny-output/default/tiny/exports/merged/run-1"
            ),
            files=3,
            verification=Verification(max_logit_difference="0", identical_tokens="4/4"),
        )
    },
}
