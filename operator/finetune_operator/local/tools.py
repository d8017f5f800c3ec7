"""What the command line needs besides running: logs, events, preview, chat, delete."""

import asyncio
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finetune_api.contract import JOB_FILE, LOG_FILE, Folders, JobFile, PrepareResult
from finetune_api.contradictions import contradictions
from finetune_api.datasetregistration import DatasetRegistration
from finetune_api.errors import Refusal
from finetune_api.finetunejob import FineTuneJob
from finetune_api.objects import dump
from finetune_operator.conditions import is_true
from finetune_operator.local.backend import LocalBackend
from finetune_operator.local.driver import AlreadyDriven, Driver, driving
from finetune_operator.local.machine import this_machine
from finetune_operator.local.processes import Processes, trainer_python
from finetune_operator.local.store import Store, write_whole
from finetune_operator.plan import Key, Observed
from finetune_operator.steps import prepare, train
from finetune_operator.steps.files import base_folder, run_output

FOLLOW_SECONDS = 0.3
DELETE_TIMEOUT_SECONDS = 120.0


def events_of(store: Store, key: Key) -> list[dict[str, str]]:
    """Return the events of an object, oldest first."""
    path = store.root / "events.jsonl"
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["object"] == "/".join(key)]


def artifact_path(store: Store, job: FineTuneJob, uri: str) -> Path:
    """Return where an artifact of a job lies on this computer."""
    return LocalBackend.path_in(store, uri, base_folder(job.metadata))


def log_lines(store: Store, key: Key, *, step: str, follow: bool) -> Iterator[str]:
    """Yield the log of the newest attempt at a step.

    Raises:
        Refusal: the step has not begun.
    """
    processes = Processes(store.root)
    runs = [run for run in processes.observe(key).values() if f"-{step}-" in run.name]
    if not runs:
        steps = sorted({run.step for run in processes.observe(key).values()})
        raise Refusal(
            [f"{key.name} has no log of step '{step}'; there: {', '.join(steps) or 'nothing yet'}"]
        )
    newest = max(runs, key=lambda run: run.started_at or 0.0)
    with (processes.folder(newest.name) / LOG_FILE).open(
        encoding="utf-8", errors="replace"
    ) as file:
        while True:
            if line := file.readline():
                yield line
            elif follow and processes.is_alive(newest.name):
                time.sleep(FOLLOW_SECONDS)
            else:
                return


@contextmanager
def interactive_step(mode: str, job_file: Path) -> Iterator[subprocess.Popen[str]]:
    """Run an interactive step; yield its process with text pipes."""
    environment = {
        **os.environ,
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [trainer_python(), "-m", "finetune_trainer", mode, "--job-file", str(job_file)]
    with (job_file.parent / LOG_FILE).open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def _folders(store: Store, name: str, base: str) -> Folders:
    root = store.root
    folder = root / "interactive" / name
    folder.mkdir(parents=True, exist_ok=True)
    return Folders(
        step=str(folder),
        cache=str(root / "cache"),
        work=str(root / "work"),
        claims=str(root / "claims"),
        secrets=str(root / "secrets"),
        base=base,
    )


def _written(file: JobFile, folders: Folders) -> Path:
    path = Path(folders.step) / JOB_FILE
    file = file.model_copy(update={"folders": folders})
    write_whole(path, file.model_dump_json(by_alias=True, exclude_none=True))
    return path


def chat_file(store: Store, key: Key, *, compare: bool, max_new_tokens: int) -> Path:
    """Return the job file of a chat with a job's result.

    Raises:
        Refusal: the job has not trained, or its working files are gone.
    """
    job = store.require(key)
    assert isinstance(job, FineTuneJob)
    if not is_true(job.status.conditions, "Trained"):
        raise Refusal(
            [
                f"FineTuneJob '{key.name}' has not trained yet ({job.status.phase}: {job.status.message})"
            ]
        )
    prepared = _prepared(store, key)
    file = JobFile(
        step="chat",
        namespace=key.namespace,
        name=key.name,
        uid=job.metadata.uid,
        run=job.status.run,
        job=job.spec,
        prepared=prepared,
        output=run_output(job, job.status.run),
        options={"compare": compare, "maxNewTokens": max_new_tokens},
    )
    return _written(file, _folders(store, f"chat-{key.name}", base_folder(job.metadata)))


def _prepared(store: Store, key: Key) -> PrepareResult:
    for run in Processes(store.root).observe(key).values():
        if run.termination and run.termination.prepared:
            return run.termination.prepared
    raise Refusal(
        [f"the working files of '{key.name}' were removed after its ttl; run it again to chat"]
    )


@dataclass(frozen=True)
class Preview:
    """A job that is looked at, not run."""

    job_file: Path
    job: FineTuneJob
    observed: Observed

    def resolved_text(self, prepared: dict[str, Any]) -> str:
        """Return every value the run would use, and why we chose what was unset."""
        result = PrepareResult.model_validate_json(json.dumps(prepared))
        values = dump(train.resolved_values(self.job, 1, result, self.observed))
        reasons = values.pop("reasons", [])
        text = yaml.safe_dump({**values, "data": dump(result.data)}, sort_keys=False)
        return "\n".join(
            ["Resolved configuration:", text, "Decided for you:", *(f"  {r}" for r in reasons)]
        )


def preview(store: Store, bodies: list[tuple[dict[str, Any], Path]], *, rows: int) -> Preview:
    """Validate the data of a job for real, in a state folder of its own.

    Raises:
        Refusal: a manifest is wrong, the data is not ready, or there is not exactly one job.
    """
    scratch = Store(store.root / "preview")
    shutil.rmtree(scratch.root, ignore_errors=True)
    wanted = [(body, base) for body, base in bodies if body.get("kind") != "ModelExport"]
    jobs = [body for body, _ in wanted if body.get("kind") == "FineTuneJob"]
    if len(jobs) != 1:
        raise Refusal([f"preview needs exactly one FineTuneJob; these files hold {len(jobs)}"])
    keys = [scratch.apply(body, base=base)[0] for body, base in wanted]
    job_key = next(key for key in keys if key.kind == "FineTuneJob")
    job = scratch.require(job_key)
    assert isinstance(job, FineTuneJob)
    if problems := contradictions(job.spec, here=this_machine()):
        raise Refusal(problems)
    observed = _validated(scratch, job, [key for key in keys if key != job_key])
    file = prepare.job_file(job, 1).model_copy(
        update={
            "step": "preview",
            "options": {"rows": rows},
            **prepare.inputs(job, observed),
        }
    )
    folders = _folders(store, f"preview-{job.metadata.name}", base_folder(job.metadata))
    return Preview(_written(file, folders), job, observed)


def _validated(scratch: Store, job: FineTuneJob, data: list[Key]) -> Observed:
    """Run the validation of a job's data, without the job itself."""
    with driving(scratch):
        asyncio.run(Driver(scratch, data, lambda *_: None).run(lambda: None))
    datasets: dict[str, DatasetRegistration] = {}
    for reference in [*job.spec.datasets, *(job.spec.eval_datasets or [])]:
        found = scratch.require(Key("DatasetRegistration", job.metadata.namespace, reference.name))
        assert isinstance(found, DatasetRegistration)
        if not is_true(found.status.conditions, "Ready"):
            raise Refusal([f"DatasetRegistration '{reference.name}': {found.status.message}"])
        datasets[reference.name] = found
    return Observed(datasets=datasets, machine=this_machine())


def delete(store: Store, key: Key) -> str | None:
    """Delete an object and wait until it is gone; return where a retained output stays."""
    resource = store.require(key)
    store.mark_deleted(key)
    try:
        with driving(store):
            asyncio.run(Driver(store, [key], lambda *_: None).run(lambda: None))
    except AlreadyDriven:
        until = time.monotonic() + DELETE_TIMEOUT_SECONDS
        while store.get(key) is not None and time.monotonic() < until:
            time.sleep(FOLLOW_SECONDS)
    if not isinstance(resource, FineTuneJob):
        return None
    path = LocalBackend.path_in(
        store, run_output(resource, resource.status.run or 1), base_folder(resource.metadata)
    )
    return str(path) if path.exists() else None
