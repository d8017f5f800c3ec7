"""What every command says in the same way: who is speaking, and why something did not work."""

import sys
from pathlib import Path

from finetune_api.errors import Refusal

PLUGIN = "kubectl-finetune"
INTERRUPTED = 130


class Problem(Exception):
    """Something outside the user's manifests keeps a command from working; told in one line."""


def program() -> str:
    """Return how the user calls this program: by itself, or as a plugin of kubectl."""
    return "kubectl finetune" if Path(sys.argv[0]).name.startswith(PLUGIN) else "finetune"


def fail(refusal: Refusal) -> int:
    """Print a refusal; return the exit code."""
    for problem in refusal.problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2


def one_line(text: str, *, limit: int = 500) -> str:
    """Return a text without line breaks, cut in the middle: advice stands at its end."""
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    half = (limit - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"
