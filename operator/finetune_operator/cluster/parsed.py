"""Objects of their classes: each version of one is read once, however often it is looked at."""

from typing import TypeVar

from pydantic import BaseModel

from finetune_api.objects import KINDS, Resource
from finetune_api.workerprofile import WorkerProfile
from finetune_operator.cluster.records import Custom, Profile

KEPT = 256
"""Of each kind: those read last. Parsed, an object takes ten times the memory of its text."""

M = TypeVar("M", bound=BaseModel)


class Parsed:
    """What records say, as objects that nobody changes."""

    def __init__(self) -> None:
        """Start empty."""
        self._found: dict[type[BaseModel], dict[tuple[str, str], BaseModel]] = {}

    def resource(self, kind: str, record: Custom) -> Resource:
        """Return an object of ours.

        Raises:
            ValidationError: this release cannot read it.
        """
        return self._of(KINDS[kind], record)

    def profile(self, record: Profile) -> WorkerProfile:
        """Return a profile.

        Raises:
            ValidationError: this release cannot read it.
        """
        return self._of(WorkerProfile, record)

    def _of(self, model: type[M], record: Custom | Profile) -> M:
        found = self._found.setdefault(model, {})
        version = (record.metadata.uid, record.metadata.resource_version)
        if version not in found:
            found[version] = model.model_validate_json(record.body)
            while len(found) > KEPT:
                found.pop(next(iter(found)))
        there = found[version]
        assert isinstance(there, model)
        return there
