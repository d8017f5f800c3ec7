"""Names of step runs: they follow from job, run, step and attempt, so that nothing is made twice."""

import hashlib

from finetune_api.meta import Metadata

LONGEST = 63  # a label and a DNS name have no more
STEP_CHARACTERS = 20
UID_CHARACTERS = 8


def work_claim(metadata: Metadata) -> str:
    """Return the name of an object's working claim."""
    rest = f"-{metadata.uid[:UID_CHARACTERS]}-work"
    return metadata.name[: LONGEST - len(rest)].rstrip("-.") + rest


def shared_name(metadata: Metadata, *, run: int, step: str, variant: str = "") -> str:
    """Return the name of what all attempts at a step share; `variant` is what may change between."""
    digest = hashlib.sha256(f"{step}/{variant}".encode()).hexdigest()[:8]
    rest = f"-{metadata.uid[:UID_CHARACTERS]}-{run}-{digest}"
    return metadata.name[: LONGEST - len(rest)].rstrip("-.") + rest


def run_name(metadata: Metadata, *, run: int, step: str, attempt: int) -> str:
    """Return the name of a step run; at most 63 characters, whatever the names of job and step."""
    if len(step) > STEP_CHARACTERS:
        step = f"{step[: STEP_CHARACTERS - 7]}-{hashlib.sha256(step.encode()).hexdigest()[:6]}"
    rest = f"-{metadata.uid[:UID_CHARACTERS]}-{run}-{step}-{attempt}"
    return metadata.name[: LONGEST - len(rest)].rstrip("-.") + rest
