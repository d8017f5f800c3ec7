"""Autograd's view of a fast layer, and of the last norm."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from finetune_trainer.fast.kernels import norm
from finetune_trainer.fast.layer import Batch, FastLayer
from finetune_trainer.fast.shared import Shared


class LayerFunction(torch.autograd.Function):
    """One layer: from hidden states [B, T, H] to hidden states."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, layer: FastLayer, shared: Shared, batch: Batch, *trained: Tensor
    ) -> Tensor:
        """Run the layer; keep what its level keeps."""
        del trained  # they are here to be given gradients
        with torch.autocast(hidden.device.type, enabled=False):
            rows = hidden.reshape(-1, hidden.shape[-1])
            result, kept = layer.forward(rows, batch)
        if any(ctx.needs_input_grad):
            kept.let_go(layer.level)
            ctx.given = (layer, shared, batch, kept, shared.names)
        return result.view(hidden.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        """Return the gradients of hidden and of the adapters' parameters."""
        layer, shared, batch, kept, names = ctx.given
        del ctx.given
        # A reference model by disabled adapters may have run since.
        if names != shared.names:
            shared.use(names)
            shared.refresh()
        width = gradient.shape[-1]
        with torch.autocast(gradient.device.type, enabled=False):
            wide = shared.handed(gradient)
            if wide is None:
                wide = norm.with_room(gradient.reshape(-1, width), layer.room)
            wide, trained = layer.backward(wide, kept, batch, input_needs=ctx.needs_input_grad[0])
        kept.clear()
        shared.hand_on(wide)
        before = None if wide is None else wide[:, :width].view(gradient.shape)
        return before, None, None, None, *trained


class NormFunction(torch.autograd.Function):
    """The norm behind the last layer."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, last: norm.Norm) -> Tensor:
        """Return norm(hidden) [B, T, H]."""
        ctx.given = (hidden, last)
        rows = hidden.reshape(-1, hidden.shape[-1])
        return norm.normed(rows, last, 0).view(hidden.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of hidden."""
        hidden, last = ctx.given
        del ctx.given
        width = hidden.shape[-1]
        back, _ = norm.norm_backward(
            gradient.reshape(-1, width), hidden.reshape(-1, width), last, None, 0
        )
        return back.view(hidden.shape), None
