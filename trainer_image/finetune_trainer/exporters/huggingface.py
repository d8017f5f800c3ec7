"""One folder of safetensors, with tokenizer and chat template; loads in transformers and vLLM."""

from pathlib import Path

from finetune_api.modelexport import ExportPrecision, ExportSettings, HuggingFaceExport
from finetune_trainer.adapters import merge
from finetune_trainer.exporters.layout import ExportParts
from finetune_trainer.models import load_model

DTYPES = {
    ExportPrecision.FP32: "float32",
    ExportPrecision.BF16: "bfloat16",
    ExportPrecision.FP16: "float16",
}


def write(parts: ExportParts, settings: ExportSettings, folder: Path) -> None:
    """Merge in float32, where the sum is most exact, then store in the wanted precision."""
    import torch

    chosen = settings.huggingface or HuggingFaceExport()
    model = load_model(parts.base, dtype="auto", attention="auto")
    stored = (
        model.dtype
        if chosen.dtype is ExportPrecision.AUTO
        else getattr(torch, DTYPES[chosen.dtype])
    )
    model = merge(model.to(torch.float32), parts.adapters).to(stored)
    model.save_pretrained(folder, max_shard_size=chosen.max_shard_size)
    parts.tokenizer.save_pretrained(folder)
