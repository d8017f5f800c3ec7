"""Trust by trial: each layer runs once beside the stock one, forward and backward, and must agree."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from finetune_trainer.fast.attention import Boundaries
from finetune_trainer.fast.layer import Batch, FastLayer
from finetune_trainer.fast.spec import LayerSpec

TOLERANCE = 1e-4
HALF_TOLERANCE = 5e-2
"""Of what a layer adds, and of its gradients. Measured: bf16 rounding up to 4e-2, a wrong window or
scale 2e-1 and more."""
SHORT = 40
LONGEST_WINDOW = 4096


def probed(
    backbone: Any, layers: list[nn.Module], understood: dict[int, LayerSpec], room: int
) -> tuple[dict[int, FastLayer], dict[str, list[int]]]:
    """Return the layers that agree, made fast; and those that do not, by what was seen.

    One stock forward over two documents, the first longer than the window, with stock masks. A layer's
    weights are folded when its turn comes, so no more than one layer is held twice.
    """
    made: dict[int, FastLayer] = {}
    refused: dict[str, list[int]] = {}
    tokens, positions, rows = _documents(backbone)
    is_whole = next(backbone.parameters()).dtype == torch.float32
    tolerance = TOLERANCE if is_whole else HALF_TOLERANCE

    def compare(number: int, stock: nn.Module, args: Any, kwargs: Any, _result: Any) -> None:
        fast = FastLayer(understood[number], room)
        why = _objection(fast, stock, rows, args, kwargs, tolerance)
        if why is None:
            made[number] = fast
        else:
            fast.release()
            refused.setdefault(why, []).append(number)

    hooks = [
        layers[number].register_forward_hook(functools.partial(compare, number), with_kwargs=True)
        for number in understood
    ]
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            backbone(input_ids=tokens, position_ids=positions, use_cache=False, **rows.arguments)
    finally:
        backbone.train(was_training)
        for hook in hooks:
            hook.remove()
    return made, refused


def _documents(backbone: Any) -> tuple[Tensor, Tensor, Boundaries]:
    """Return tokens [1, T], positions [1, T] and boundaries of two documents."""
    window = getattr(backbone.config, "sliding_window", None) or 0
    long = min(window, LONGEST_WINDOW) + SHORT
    lengths = torch.tensor([0, long, SHORT])
    device = next(backbone.parameters()).device
    chance = torch.Generator().manual_seed(0)
    vocabulary = backbone.get_input_embeddings().num_embeddings
    tokens = torch.randint(vocabulary, (1, long + SHORT), generator=chance).to(device)
    positions = torch.cat([torch.arange(long), torch.arange(SHORT)])[None].to(device)
    return tokens, positions, Boundaries(lengths.cumsum(0).int().to(device), long)


def _objection(
    fast: FastLayer, stock: nn.Module, rows: Boundaries, args: Any, kwargs: Any, tolerance: float
) -> str | None:
    """Return why a layer is not to be trusted; None: it agrees with the stock one."""
    try:
        worst = max(_differences(fast, stock, rows, args, kwargs))
    except (
        Exception
    ) as error:  # whatever a kernel or a layer of another kind raises: stock it stays
        return f"it does not run ({type(error).__name__}: {str(error).splitlines()[:1]})"
    return None if worst <= tolerance else f"it computes otherwise (by {worst:.0e})"


def _differences(
    fast: FastLayer, stock: nn.Module, rows: Boundaries, args: Any, kwargs: Any
) -> Iterator[float]:
    """Yield how far the two are apart: in what they add to the input, and in each gradient."""
    kwargs = dict(kwargs)
    hidden: Tensor = args[0] if args else kwargs.pop("hidden_states")
    hidden = hidden.detach().requires_grad_()
    for product in fast.products:
        product.bind(fast.active_names())
        product.refresh()
    with torch.enable_grad():
        wanted: Tensor = stock.forward(hidden, *args[1:], **kwargs)
        chance = torch.Generator().manual_seed(1)
        arriving = torch.randn(wanted.shape, generator=chance).to(wanted)
        gradients = torch.autograd.grad(wanted, [hidden, *fast.trained], arriving)
    width = hidden.shape[-1]
    flat, arriving = hidden.detach().reshape(-1, width), arriving.reshape(-1, width)
    cosines, sines = kwargs["position_embeddings"]
    tables = (cosines.reshape(-1, cosines.shape[-1]), sines.reshape(-1, sines.shape[-1]))
    batch = Batch(tables, rows)
    found, kept = fast.forward(flat.clone(), batch)
    yield _distance(found - flat, wanted.detach().reshape(-1, width) - flat)
    wide = arriving.new_empty(arriving.shape[0], width + fast.room)
    wide[:, :width] = arriving
    back, trained = fast.backward(wide, kept, batch, input_needs=True)
    assert back is not None
    yield _distance(back[:, :width] - arriving, gradients[0].reshape(-1, width) - arriving)
    for one, other in zip(trained, gradients[1:], strict=True):
        yield _distance(one, other)


def _distance(found: Tensor, wanted: Tensor) -> float:
    """Return the relative difference; of what is zero, as an adapter's first gradient is, the absolute."""
    size = wanted.float().norm()
    difference = (found.float() - wanted.float()).norm()
    return float(difference / size if size > 0 else difference)
