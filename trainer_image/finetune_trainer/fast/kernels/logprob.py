"""Log-probabilities of targets and, in the place of the logits, their gradients."""

from dataclasses import dataclass

import torch
from torch import Tensor

from finetune_trainer.fast.kernels import by_triton


@dataclass(frozen=True)
class Scores:
    """Of each position; [P] float32 each."""

    log_probabilities: Tensor
    entropies: Tensor
    is_likeliest: Tensor
    """Whether the target is the most probable token; bool."""


def score(logits: Tensor, targets: Tensor, *, soft_cap: float | None, gradients: bool) -> Scores:
    """Return the scores of targets [P] under logits [P, V].

    With `gradients` the logits become the derivatives of each position's log-probability by them.
    `soft_cap` c makes c * tanh(logits / c) of them first (Gemma).
    """
    if by_triton(logits):
        from finetune_trainer.fast.kernels.compiled import logprob as compiled

        return compiled.score(logits, targets, soft_cap=soft_cap, gradients=gradients)
    x = logits.float()
    slope = None
    if soft_cap is not None:
        bent = torch.tanh(x / soft_cap)
        x, slope = bent * soft_cap, 1 - bent.square()
    total = x.logsumexp(1, keepdim=True)
    chosen = x.gather(1, targets[:, None])
    shares = (x - total).exp()
    found = Scores(
        (chosen - total)[:, 0], (total - (shares * x).sum(1, keepdim=True))[:, 0],
        (chosen >= x.amax(1, keepdim=True))[:, 0],
    )  # fmt: skip
    if gradients:
        back = shares.neg_()
        back.scatter_add_(1, targets[:, None], torch.ones_like(chosen))
        logits.copy_(back if slope is None else back * slope)
    return found
