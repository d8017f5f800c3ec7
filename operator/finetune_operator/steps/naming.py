"""Names of step runs: they follow from job, run, step and attempt, so that nothing is made twice."""

from finetune_api.meta import Metadata

NAME_CHARACTERS = 40
UID_CHARACTERS = 8


def run_name(metadata: Metadata, *, run: int, step: str, attempt: int) -> str:
    """Return the name of a step run; at most 63 characters."""
    owner = f"{metadata.name[:NAME_CHARACTERS].rstrip('-.')}-{metadata.uid[:UID_CHARACTERS]}"
    return f"{owner}-{run}-{step}-{attempt}"
