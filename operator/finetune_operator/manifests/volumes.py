"""What a step mounts: exactly the claims and secrets that its job file speaks of."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from finetune_api.contract import Folders, JobFile
from finetune_api.storage import Location
from finetune_operator.plan import StepRun

FOLDERS = Folders(
    step="/step",
    cache="/work/cache",
    work="/work/runs",
    claims="/claims",
    secrets="/secrets",
    termination_log="/dev/termination-log",
)
"""Where a step finds things in its pod."""
CONFIG_FOLDER = "/config"
AUTHORITIES_KEY = "ca.crt"
TOKEN_FOLDER, TOKEN_FILE = "/var/run/finetune", "token"
CA_FOLDER = "/etc/finetune-ca"
SCHEME = "pvc://"


@dataclass(frozen=True)
class Mount:
    """A volume and where it is mounted."""

    name: str
    path: str
    source: dict[str, Any]
    read_only: bool = False

    @property
    def volume(self) -> dict[str, Any]:
        """Return its entry in the pod's `volumes`."""
        return {"name": self.name, **self.source}

    @property
    def mount(self) -> dict[str, Any]:
        """Return its entry in the container's `volumeMounts`."""
        entry: dict[str, Any] = {"name": self.name, "mountPath": self.path}
        return {**entry, "readOnly": True} if self.read_only else entry


def mounts_of(run: StepRun) -> tuple[Mount, ...]:
    """Return all that a step mounts."""
    written = claim_of(run.job_file.output)
    claims = sorted({claim_of(uri) for uri in _locations_read(run.job_file)} | {written} - {""})
    work: dict[str, Any] = {"emptyDir": {}}
    if run.work_claim:
        work = {"persistentVolumeClaim": {"claimName": run.work_claim}}
    return (
        Mount("config", CONFIG_FOLDER, {"configMap": {"name": run.shared_name}}, read_only=True),
        Mount("step", FOLDERS.step, {"emptyDir": {}}),
        Mount("tmp", "/tmp", {"emptyDir": {}}),
        Mount("work", "/work", work),
        *(
            Mount(
                f"claim-{number}",
                f"{FOLDERS.claims}/{name}",
                {"persistentVolumeClaim": {"claimName": name}},
                read_only=name != written,
            )
            for number, name in enumerate(claim for claim in claims if claim)
        ),
        *(
            Mount(f"secret-{number}", f"{FOLDERS.secrets}/{name}", _secret(name), read_only=True)
            for number, name in enumerate(sorted(secrets_of(run.job_file)))
        ),
    )


def _secret(name: str) -> dict[str, Any]:
    return {"secret": {"secretName": name, "defaultMode": 0o440}}


def claim_of(uri: str) -> str:
    """Return the claim of a `pvc://` location, or nothing."""
    return uri.removeprefix(SCHEME).split("/", 1)[0] if uri.startswith(SCHEME) else ""


def _locations(file: JobFile) -> Iterator[Location]:
    """Yield every location that a step reads; training reads what was prepared only."""
    if file.job is not None and file.step == "prepare":
        yield file.job.model
    inputs = [*file.datasets, *file.eval_datasets]
    for dataset in [*inputs, *([file.registration] if file.registration else [])]:
        source = dataset.spec.source
        if source.uri is not None:
            yield Location(uri=source.uri, credentials_secret_ref=source.credentials_secret_ref)
        if dataset.spec.tokenizer is not None:
            yield dataset.spec.tokenizer
    if file.export is not None:
        given = [file.export.model, file.export.full_model, *file.export.adapters]
        yield from (location for location in given if location is not None)


def _locations_read(file: JobFile) -> Iterator[str]:
    return (location.uri for location in _locations(file))


def secrets_of(file: JobFile) -> set[str]:
    """Return the secrets that a step reads."""
    return {
        location.credentials_secret_ref.name
        for location in _locations(file)
        if location.credentials_secret_ref is not None
    }
