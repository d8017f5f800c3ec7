"""Children that the API server refuses: told on the object, tried again ever later."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from finetune_operator.cluster.client import ApiError
from finetune_operator.plan import Key, Waiting

FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 300.0
REASON = "ChildRefused"
REFUSING = (400, 403, 413, 422)
ENDING_NAMESPACE = "because it is being terminated"


class ChildRefused(Exception):
    """The API server does not take a child, or its name belongs to something else."""

    def __init__(self, kind: str, name: str, why: str, *, is_invalid: bool = False) -> None:
        """Say which child and why; `is_invalid`: its manifest itself is at fault."""
        super().__init__(f"{kind} '{name}': {why}")
        self.is_invalid = is_invalid

    @property
    def namespace_ends(self) -> bool:
        """Whether nothing is made any more because the whole namespace goes."""
        return ENDING_NAMESPACE in str(self)


def refusal(kind: str, name: str, error: ApiError) -> ChildRefused | None:
    """Return what an answer refuses; None: it is a matter of the API server, and passes."""
    # A webhook that does not answer comes as 500, and can stay away for long.
    if error.status not in REFUSING and not (error.status == 500 and "webhook" in error.message):
        return None
    why = f"the API server refuses it: {error.message}; correct what it names, it is tried again"
    return ChildRefused(kind, name, why, is_invalid=error.status in (400, 422))


@dataclass(frozen=True)
class _Refused:
    run: str
    generation: int
    words: str
    tries: int
    until: float


class Refusals:
    """What was refused last, of each object that waits for it."""

    def __init__(self, wake_after: Callable[[Key, float], None]) -> None:
        """Wake objects when it is time to try again."""
        self._wake_after = wake_after
        self._found: dict[Key, _Refused] = {}

    def of(self, key: Key) -> dict[str, Waiting]:
        """Return the run that cannot be made, and why."""
        found = self._found.get(key)
        return {found.run: Waiting(REASON, found.words)} if found else {}

    def may_try(self, key: Key, run: str, generation: int) -> bool:
        """Tell whether it is time to make a run; a changed object is tried at once."""
        found = self._found.get(key)
        if found is None or (found.run, found.generation) != (run, generation):
            return True
        left = found.until - time.monotonic()
        if left > 0:
            self._wake_after(key, left)
        return left <= 0

    def note(self, key: Key, run: str, generation: int, refused: ChildRefused) -> None:
        """Note a refusal, and have the object say so."""
        before = self._found.get(key)
        same = before is not None and (before.run, before.generation) == (run, generation)
        tries = before.tries + 1 if before is not None and same else 1
        pause = min(FIRST_PAUSE_SECONDS * 2 ** min(tries - 1, 10), LONGEST_PAUSE_SECONDS)
        until = time.monotonic() + pause
        self._found[key] = _Refused(run, generation, str(refused), tries, until)
        self._wake_after(key, 0.0)

    def forget(self, key: Key) -> None:
        """Forget an object's refusals: it is gone, or was not refused again."""
        self._found.pop(key, None)
