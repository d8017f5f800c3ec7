"""Whether a run takes the fast path, and what its layers keep."""

from typing import Any

import torch

from finetune_api.status import Resolved
from finetune_trainer.fast import recompute
from finetune_trainer.fast.layer import FastLayer
from finetune_trainer.fast.patch import FastModel, patch

GIB = 1 << 30
ADAM_AND_GRADIENT_BYTES = 12
"""Of a trained weight, from the first step on: two moments (arXiv:1412.6980) and a gradient, float32."""
SPARE = 0.04
"""Of a device's memory, for what allocators lose between blocks."""


def speed_up(model: Any, resolved: Resolved) -> FastModel | None:
    """Make a model fast for a run, on a GPU; return None where it stays as it is."""
    if resolved.device != "cuda" or resolved.precision == "fp16":
        return None
    done = patch(model)
    if done.shared.layers:
        choose_levels(model, done, resolved, free=_free_bytes())
    print(f"Fast path: {done.summary}", flush=True)
    return done


def choose_levels(model: Any, done: FastModel, resolved: Resolved, *, free: int) -> None:
    """Let each layer keep what fits into `free` bytes, or what was asked for."""
    layers = done.shared.layers
    if resolved.activation_checkpointing:
        chosen = [recompute.ALL] * len(layers)
    else:
        tokens = (
            resolved.tokens_per_micro_batch or resolved.per_device_batch_size * resolved.max_length
        )
        spent = needed_beside(model, layers[0], tokens)
        chosen = recompute.levels(free - spent, len(layers), kept_by(layers[0], tokens))
    for layer, level in zip(layers, chosen, strict=True):
        layer.level = level
    print(f"Kept for the backward: {recompute.told(chosen)}", flush=True)


def kept_by(layer: FastLayer, tokens: int) -> recompute.LayerBytes:
    """Return what a layer keeps of so many tokens."""
    first = layer.down
    return recompute.layer_bytes(
        tokens=tokens, width=first.outputs, qkv=layer.query_key_value.outputs,
        attended=layer.out.inputs, gate_up=layer.gate_up.outputs, room=layer.room,
        element=layer.down.up.element_size(), norms_after=layer.spec.after_gate is not None,
    )  # fmt: skip


def needed_beside(model: Any, layer: FastLayer, tokens: int) -> int:
    """Return the bytes that a step needs beside what layers keep: head, optimizer, one backward."""
    from finetune_trainer.fast.head import PIECE

    element = int(layer.down.up.element_size())
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    head = min(tokens, PIECE) * vocabulary * (element + 4)
    trained = sum(int(p.numel()) for p in model.parameters() if p.requires_grad)
    widest = layer.gate_up.outputs
    backward = tokens * element * (3 * widest + layer.room + 4 * layer.down.outputs)
    return head + trained * ADAM_AND_GRADIENT_BYTES + backward


def _free_bytes() -> int:
    free, total = torch.cuda.mem_get_info()
    cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return int(free + cached - SPARE * total)
