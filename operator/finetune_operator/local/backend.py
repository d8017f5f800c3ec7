"""Objects and processes of this computer, as the loop wants them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_api.datasetregistration import DatasetRegistration
from finetune_api.finetunejob import FineTuneJob
from finetune_api.modelexport import ModelExport
from finetune_api.objects import Resource
from finetune_operator.conditions import timestamp
from finetune_operator.local.machine import this_machine
from finetune_operator.local.processes import Processes
from finetune_operator.local.store import Store
from finetune_operator.loop import utc_now
from finetune_operator.plan import Event, Key, Observed, Plan
from finetune_operator.steps.files import base_folder

MAX_EVENT_BYTES = 4 << 20


class LocalBackend:
    """Observes and executes on files and processes."""

    def __init__(self, store: Store, on_event: Callable[[Key, Event], None]) -> None:
        """Use a state folder; events are also handed to whoever shows them."""
        self.store = store
        self.processes = Processes(store.root)
        self._on_event = on_event
        self._machine = this_machine()

    async def observe(self, key: Key) -> tuple[Any, Observed] | None:
        """Return an object with all a decision may look at; None if it is gone."""
        resource = self.store.get(key)
        if resource is None:
            return None
        datasets: dict[str, DatasetRegistration] = {}
        jobs: dict[str, FineTuneJob] = {}
        if isinstance(resource, FineTuneJob):
            for reference in [*resource.spec.datasets, *(resource.spec.eval_datasets or [])]:
                found = self.store.get(Key("DatasetRegistration", key.namespace, reference.name))
                if isinstance(found, DatasetRegistration):
                    datasets[reference.name] = found
        job_runs = {}
        if isinstance(resource, ModelExport) and resource.spec.source.job_ref:
            of = Key("FineTuneJob", key.namespace, resource.spec.source.job_ref.name)
            job = self.store.get(of)
            if isinstance(job, FineTuneJob):
                jobs[of.name] = job
                job_runs[of.name] = self.processes.observe(of)
        observed = Observed(
            runs=self.processes.observe(key),
            datasets=datasets,
            jobs=jobs,
            job_runs=job_runs,
            machine=self._machine,
        )
        return resource, observed

    async def execute(self, key: Key, plan: Plan) -> None:
        """Do what a plan says: status first, then what stops, what starts, and the rest."""
        resource = self.store.get(key)
        if resource is None:
            return
        uid = resource.metadata.uid
        if plan.status is not None and plan.status != resource.status:
            self.store.write_status(key, uid, plan.status)
        for name in plan.stops:
            self.processes.stop(name)
        for run in plan.runs:
            # One training at a time: two would share, and together exceed, this computer's memory.
            if run.job_file.step != "train" or not self.processes.is_training(besides=run.name):
                self.processes.create(run, uid)
        self._remove(plan, resource)
        if plan.releases_object:
            self.store.remove(key)
        for event in plan.events:
            self._tell(key, event)

    def _remove(self, plan: Plan, resource: Resource) -> None:
        """Remove runs, working files and outputs that are no longer wanted."""
        uid = resource.metadata.uid
        for name in plan.removals:
            shutil.rmtree(self.processes.folder(name), ignore_errors=True)
        if plan.removes_work:
            shutil.rmtree(self.processes.work_folder(uid), ignore_errors=True)
        for location in plan.removed_outputs:
            self._remove_output(location, base_folder(resource.metadata), uid)

    @staticmethod
    def path_in(store: Store, location: str, base: str) -> Path:
        """Return the path of a `pvc://` or `file://` location."""
        scheme, rest = location.split("://", 1)
        return (Path(base) if scheme == "file" else store.root / "claims") / rest

    def _remove_output(self, location: str, base: str, uid: str) -> None:
        """Remove an output; an unfinished one only if it is this object's own."""
        path = self.path_in(self.store, location, base)
        if location.endswith(".incomplete"):
            try:
                owner = json.loads((path / "owner.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return
            if owner.get("uid") != uid:
                return
        shutil.rmtree(path, ignore_errors=True)
        self._remove_empty_parents(path)

    def _remove_empty_parents(self, path: Path) -> None:
        claims = self.store.root / "claims"
        for parent in path.parents:
            if claims not in parent.parents or any(parent.iterdir() if parent.is_dir() else ()):
                return
            parent.rmdir() if parent.is_dir() else None

    def _tell(self, key: Key, event: Event) -> None:
        """Keep an event in a bounded log, and show it."""
        path = self.store.root / "events.jsonl"
        if path.exists() and path.stat().st_size > MAX_EVENT_BYTES:
            path.replace(path.with_suffix(".old.jsonl"))
        line = {
            "time": timestamp(utc_now()),
            "object": "/".join(key),
            "type": "Warning" if event.is_warning else "Normal",
            "reason": event.reason,
            "message": event.message,
        }
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._on_event(key, event)
