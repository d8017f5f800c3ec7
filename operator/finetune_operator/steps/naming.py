"""Names of step runs: they follow from job, run, step and attempt, so that nothing is made twice."""

import hashlib

from finetune_api.meta import Metadata

LONGEST = 63  # a label and a DNS name have no more
LONGEST_JOB = 61
"""Of an Indexed Job: its pod's host name has "-0" more, and the API server refuses what cannot be."""
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
    """Return the name of a step run; at most 61 characters, whatever the names of job and step."""
    rest = f"-{metadata.uid[:UID_CHARACTERS]}-{run}-{shortened(step, STEP_CHARACTERS)}-{attempt}"
    return metadata.name[: LONGEST_JOB - len(rest)].rstrip("-.") + rest


def shortened(text: str, longest: int) -> str:
    """Return a name cut to a length, still its own by a digest."""
    if len(text) <= longest:
        return text
    return f"{text[: longest - 7]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
