"""The output embeddings and the loss, for the trained positions only and a piece of them at a time.

The whole logits, positions x vocabulary, never exist. Each piece's gradient is made in the forward,
while its logits are there, so the head is multiplied with twice, not three times.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from finetune_trainer.fast.kernels import logprob

PIECE = 2048
"""Positions at a time: large enough for a GPU, 0.5 GiB of logits for a vocabulary of 128,000."""


SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
"""What other models multiply their logits with."""


@dataclass(frozen=True)
class Head:
    """A frozen linear from hidden states to logits."""

    weight: Tensor
    """[V, H]"""
    soft_cap: float | None = None


@dataclass(frozen=True)
class Scored:
    """What a model says of some positions."""

    log_probs: Tensor
    """[P] float32"""


def read(causal: Any) -> Head | None:
    """Return the head of a causal model; None: it is trained, adapted, or has something unknown."""
    module = causal.get_output_embeddings()
    config = causal.config.get_text_config()
    scaled = any(getattr(config, name, None) not in (None, 1, 1.0) for name in SCALES)
    if type(module) is not nn.Linear or module.bias is not None or scaled:
        return None
    if module.weight.requires_grad:
        return None
    return Head(module.weight, getattr(config, "final_logit_softcapping", None))


class HeadFunction(torch.autograd.Function):
    """Log-probabilities of targets from hidden states."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, soft_cap: float | None
    ) -> Tensor:
        """Return log-probabilities [P] float32 of targets [P] for hidden states [P, H].

        `weight` [V, H] is frozen.
        """
        wanted = ctx.needs_input_grad[0]
        found = hidden.new_empty(len(targets), dtype=torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            rows = hidden.to(weight.dtype)
            slopes = torch.empty_like(rows) if wanted else None
            for start in range(0, len(targets), PIECE):
                piece = slice(start, start + PIECE)
                logits = rows[piece] @ weight.t()
                scores = logprob.score(logits, targets[piece], soft_cap=soft_cap, gradients=wanted)
                found[piece] = scores.log_probabilities
                if slopes is not None:
                    torch.mm(logits, weight, out=slopes[piece])
        ctx.slopes = slopes
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of hidden [P, H]."""
        slopes = ctx.slopes
        del ctx.slopes
        return slopes * gradient[:, None].to(slopes.dtype), None, None, None


def log_probabilities(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """Return the log-probabilities [P] float32 of targets [P] for hidden states [P, H]."""
    found: Tensor = HeadFunction.apply(hidden, head.weight, targets, head.soft_cap)
    return found
