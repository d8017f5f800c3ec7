"""Makes packages absent though they are installed, or tells which were imported; for processes of tests."""

import atexit
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

ABSENT = frozenset(filter(None, os.environ.get("FINETUNE_TEST_ABSENT", "").split(",")))
IMPORTS = os.environ.get("FINETUNE_TEST_IMPORTS")
HEAVY = ("torch", "trl", "peft", "accelerate", "datasets", "gguf", "matplotlib")


class Finder(PathFinder):
    """Finds what Python's own finder finds, but for the packages that are absent."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.split(".")[0] in ABSENT:
            return None
        return super().find_spec(name, path, target)


def _tell(path: str) -> None:
    imported = [name for name in HEAVY if sys.modules.get(name) is not None]
    with open(path, "a", encoding="utf-8") as file:
        file.write(" ".join([sys.argv[1] if sys.argv[1:] else "", *imported]) + "\n")


if ABSENT:
    place = sys.meta_path.index(PathFinder)
    sys.meta_path[place] = Finder
if IMPORTS:
    atexit.register(_tell, IMPORTS)
