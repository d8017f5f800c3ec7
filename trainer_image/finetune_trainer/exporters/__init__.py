"""Export formats. A new one is one module here and one entry in `EXPORTERS`."""

from collections.abc import Callable
from pathlib import Path

from finetune_api.modelexport import ExportFormat, ExportSettings
from finetune_trainer.exporters import huggingface
from finetune_trainer.exporters.layout import ExportParts

EXPORTERS: dict[ExportFormat, Callable[[ExportParts, ExportSettings, Path], None]] = {
    ExportFormat.HUGGINGFACE: huggingface.write,
}
