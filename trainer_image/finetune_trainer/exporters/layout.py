"""What every exporter gets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ExportParts:
    """A base model, the adapters trained on it, and the tokenizer that goes with them."""

    base: Path
    adapters: list[Path]
    tokenizer: Any
