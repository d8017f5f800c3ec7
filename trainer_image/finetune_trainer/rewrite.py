"""Weights that only PyTorch reads, GGUF and pickle files, rewritten as safetensors."""

import sys
from pathlib import Path
from typing import Any

from finetune_api.contract import JobFile
from finetune_api.images import prepare_needs_torch
from finetune_trainer import sources
from finetune_trainer.errors import UserError, reading


def keep_torch_out(file: JobFile) -> None:
    """Let this process do without PyTorch where its step can, though it is installed.

    transformers imports it wherever it finds it, which takes seconds. A name that stands for None in
    `sys.modules` is not found (https://docs.python.org/3/reference/import.html#the-module-cache).
    """
    if file.job is None or not prepare_needs_torch(file.job):
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def require_torch(needs: str, purpose: str) -> None:
    """Refuse what takes PyTorch where it is not to be had.

    Raises:
        UserError: the image has none, or the job did not say that it would be needed.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{needs}, which is not here; use the trainer image to {purpose}"
        ) from error


def rewrite_gguf(path: Path, folder: Path, named: str) -> None:
    """Dequantise a GGUF file into a folder.

    Raises:
        UserError: it is none, or there is no PyTorch to read it with.
    """
    require_torch(
        f"{named}: this model needs torch to be converted: {path.name} is a GGUF file",
        "convert it: give a location that ends in .gguf, which is prepared there",
    )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    arguments: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    print(f"Dequantising {path.name}, once", flush=True)
    with reading(f"{named} cannot be read as GGUF", "copy it again, or use safetensors"):
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **arguments)
        model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **arguments)
    # The weights are no longer quantised, whatever the file was.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def rewrite_pickles(folder: Path, named: str, *, trust_remote_code: bool) -> None:
    """Put safetensors in the place of a folder's pickle files.

    Raises:
        UserError: they cannot be read, or there is no PyTorch to read them with.
    """
    require_torch(
        f"{named}: this model needs torch to be converted: its weights are in pickle files",
        "convert it, or give its safetensors version",
    )
    import torch
    from transformers import AutoModelForCausalLM

    with reading(f"{named}: the pickle files cannot be read", "use a safetensors version"):
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", use_safetensors=False, trust_remote_code=trust_remote_code
        )
    for pattern in sources.PICKLE_FILES:
        for file in folder.glob(pattern):
            file.unlink()
    with torch.no_grad():
        model.save_pretrained(folder)
