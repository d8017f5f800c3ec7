"""The summed loss of a micro-batch, with the head computed for the trained tokens only."""

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from finetune_trainer.data.saved import IGNORED


def summed_loss(model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """Return the negative log-likelihood summed over the trained tokens; float32, no shape.

    On a GPU by TRL's fused head, which never builds the logits. On the CPU that head computes every
    position and its metrics; here the model computes the logits of the trained positions.
    """
    labels = inputs["labels"]  # [B, T]
    if labels.device.type != "cpu":
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        return -outputs.log_probs.sum()
    targets = labels[:, 1:]
    positions = (targets != IGNORED).any(dim=0).nonzero().flatten()  # [P]
    given = {name: value for name, value in inputs.items() if name != "labels"}
    logits = model(**given, use_cache=False, logits_to_keep=positions).logits  # [B, P, V]
    return cross_entropy(
        logits.flatten(0, 1).float(),
        targets[:, positions].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )
