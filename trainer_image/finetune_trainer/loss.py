"""The summed loss of a micro-batch, with the head computed for the trained tokens only."""

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from finetune_trainer.data.saved import IGNORED

SCORED = ("scored_positions", "targets")
"""What the collator adds for models that score positions themselves."""


def summed_loss(
    model: torch.nn.Module, inputs: dict[str, Any], *, scores: bool = False
) -> torch.Tensor:
    """Return the negative log-likelihood summed over the trained tokens; float32, no shape.

    `scores`: the model scores positions itself. Else on a GPU by TRL's fused head, which never builds
    the logits. On the CPU that head computes every position and its metrics; here the model computes
    the logits of the trained positions.
    """
    labels = inputs["labels"]  # [B, T]
    if scores:
        given = {name: value for name, value in inputs.items() if name != "labels"}
        return -model(**given, use_cache=False).log_probs.sum()
    inputs = {name: value for name, value in inputs.items() if name not in SCORED}
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


def scored(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return which positions of a batch are scored, counted over all its rows, and their targets; [P].

    A position's target is the label after it; labels are [B, T].
    """
    after = labels[:, 1:]
    is_scored = torch.zeros_like(labels, dtype=torch.bool)
    is_scored[:, :-1] = after != IGNORED
    return {
        "scored_positions": is_scored.flatten().nonzero().flatten(),
        "targets": after[after != IGNORED],
    }
