"""Log-probabilities of targets, by Triton: one program a position, twice over its logits."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from finetune_trainer.fast.kernels.logprob import Scores

BLOCK, WARPS = 4096, 8


@triton.jit
def _bent(x, cap, CAPS: tl.constexpr):
    """Return cap * tanh(x / cap) and its slope, or x and 1."""
    if CAPS:
        t = 2.0 * tl.sigmoid(2.0 * x / cap) - 1.0
        return cap * t, 1.0 - t * t
    else:  # noqa: RET505  Triton compiles one of the two
        return x, x * 0.0 + 1.0


@triton.jit
def _score(
    logits, targets, log_probabilities, entropies, likeliest, stride, cap,
    WIDTH: tl.constexpr, CAPS: tl.constexpr, GRADIENTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    start = logits + row * stride
    most = -float("inf")
    total = 0.0
    weighted = 0.0
    for first in range(0, WIDTH, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < WIDTH
        x = tl.load(start + column, mask=inside, other=0.0).to(tl.float32)
        x, _ = _bent(x, cap, CAPS)
        now = tl.maximum(most, tl.max(tl.where(inside, x, -float("inf")), 0))
        shrink = tl.exp(most - now)
        shares = tl.where(inside, tl.exp(x - now), 0.0)
        total = total * shrink + tl.sum(shares, 0)
        weighted = weighted * shrink + tl.sum(shares * x, 0)
        most = now
    chosen, _ = _bent(tl.load(start + target).to(tl.float32), cap, CAPS)
    log_total = most + tl.log(total)
    tl.store(log_probabilities + row, chosen - log_total)
    tl.store(entropies + row, log_total - weighted / total)
    tl.store(likeliest + row, (chosen >= most).to(tl.int8))
    if GRADIENTS:
        tl.debug_barrier()  # all have read the target's logit
        for first in range(0, WIDTH, BLOCK):
            column = first + tl.arange(0, BLOCK)
            inside = column < WIDTH
            x = tl.load(start + column, mask=inside, other=0.0).to(tl.float32)
            x, slope = _bent(x, cap, CAPS)
            back = (tl.where(column == target, 1.0, 0.0) - tl.exp(x - log_total)) * slope
            tl.store(start + column, back.to(logits.dtype.element_ty), mask=inside)


def score(logits: Tensor, targets: Tensor, *, soft_cap: float | None, gradients: bool) -> Scores:
    """Return the scores of targets [P] under logits [P, V]; these become their gradients if wanted."""
    count, width = logits.shape
    found = [torch.empty(count, dtype=torch.float32, device=logits.device) for _ in range(2)]
    likeliest = torch.empty(count, dtype=torch.int8, device=logits.device)
    _score[(count,)](
        logits, targets, *found, likeliest, logits.stride(0), soft_cap or 1.0,
        WIDTH=width, CAPS=soft_cap is not None, GRADIENTS=gradients, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return Scores(found[0], found[1], likeliest.bool())
