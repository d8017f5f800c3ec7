"""Linears that share an input, as one product with their adapters folded in.

With W [N, K] the weights of all of them, down [r, K] and up [N, r] of their adapters:

    M = [ W                up ]      x' = [ x, x (scaling down)^T ]      y  = x' M[:N]^T
        [ scaling down      0 ]      dy' = [ dy, dy up ]                 dx = dy' M[:, :K]

so each way is one large product, and a small one that fills the columns beside x and dy: buffers have
`room` for them. The weights stay the modules' own parameters: they become views of M.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune_trainer.fast.adapters import adapter_of, base_of, is_adapted


@dataclass(frozen=True)
class Place:
    """Where the adapter of one linear is: rows of its outputs, columns of its rank."""

    outputs: slice
    ranks: slice


@dataclass(frozen=True)
class Copy:
    """A float32 parameter, and the part of M that follows it."""

    source: nn.Parameter
    target: Tensor
    scale: float


class Product:
    """Some linears of one layer as one product."""

    def __init__(self, linears: list[nn.Module], room: int) -> None:
        """Fold the weights of `linears`; `room` columns are for adapters."""
        self.linears, self.room = linears, room
        bases = [base_of(linear) for linear in linears]
        sizes = [int(base.out_features) for base in bases]
        self.outputs, self.inputs = sum(sizes), int(bases[0].in_features)
        ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
        self._rows = [slice(start, end) for start, end in zip(ends, ends[1:], strict=False)]
        self.bias = _bias(bases)
        self._hold(bases)
        self.parameters: list[nn.Parameter] = []
        self.copies: list[Copy] = []
        self._places: list[Place] = []
        self._names: tuple[str, ...] = ()
        self._scalings: Tensor | None = None
        self._rank, self.is_on = 0, False

    def _hold(self, bases: list[Any]) -> None:
        """Move the weights into M; each module's own becomes a view of it."""
        like = bases[0].weight
        self._matrix = like.new_zeros(self.outputs + self.room, self.inputs + self.room)
        for base, rows in zip(bases, self._rows, strict=True):
            self._matrix[rows, : self.inputs] = base.weight.data
            base.weight.data = self._matrix[rows, : self.inputs]
        self.up = self._matrix[: self.outputs, self.inputs :]
        self.down = self._matrix[self.outputs :, : self.inputs]

    def release(self) -> None:
        """Give the modules weights of their own again."""
        for linear in self.linears:
            weight = base_of(linear).weight
            weight.data = weight.data.contiguous()

    def bind(self, names: tuple[str, ...]) -> None:
        """Use the adapters of some names; none: the frozen weights alone."""
        self.is_on = bool(names)
        if not names or names == self._names:
            return
        self._names = names
        self.parameters, self.copies, self._places = [], [], []
        scalings: list[Tensor] = []
        self.up.zero_()
        self.down.zero_()
        taken = 0
        for linear, rows in zip(self.linears, self._rows, strict=True):
            adapter = adapter_of(linear, names)
            if adapter is None:
                continue
            rank = adapter.down.shape[0]
            ranks = slice(taken, taken + rank)
            taken += rank
            self._places.append(Place(rows, ranks))
            self.parameters += [adapter.down, adapter.up]
            self.copies += [
                Copy(adapter.down, self.down[ranks], adapter.scaling),
                Copy(adapter.up, self.up[rows, ranks], 1.0),
            ]
            scalings.append(torch.full((rank, 1), adapter.scaling, device=self.up.device))
        self._rank = taken
        self._scalings = torch.cat(scalings) if scalings else None

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring M to what the parameters of the adapters are now."""
        if self.is_on:
            for copy in self.copies:
                copy.target.copy_(copy.source * copy.scale)

    @property
    def rank(self) -> int:
        """Columns that adapters take now."""
        return self._rank if self.is_on else 0

    @property
    def trained(self) -> list[nn.Parameter]:
        """Parameters of the adapters that are on."""
        return self.parameters if self.is_on else []

    def forward(self, wide: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return y [T, N] and what the backward needs of the adapters, [T, room] or None.

        `wide` [T, K + room] holds x; the columns beside it are filled here.
        """
        beside = wide[:, self.inputs :]
        if self.rank:
            torch.mm(wide[:, : self.inputs], self.down.t(), out=beside)
        else:
            beside.zero_()
        weights = self._matrix[: self.outputs].t()
        y = wide @ weights if self.bias is None else torch.addmm(self.bias, wide, weights)
        return y, beside.clone() if self.rank else None

    def backward_beside(self, wide: Tensor) -> None:
        """Fill the columns beside dy, [T, N + room], for the two that follow."""
        beside = wide[:, self.outputs :]
        if self.rank:
            torch.mm(wide[:, : self.outputs], self.up, out=beside)
        else:
            beside.zero_()

    def backward(self, wide: Tensor) -> Tensor:
        """Return dx [T, K] of dy, [T, N + room]."""
        return wide @ self._matrix[:, : self.inputs]

    def parameter_gradients(self, wide: Tensor, x: Tensor, beside: Tensor | None) -> list[Tensor]:
        """Return the gradients of `trained`, float32, from dy, x [T, K], and what the forward kept."""
        if self._scalings is None or beside is None or not self.is_on:
            return []
        downs = _float_product(wide[:, self.outputs : self.outputs + self.rank].t(), x)
        downs *= self._scalings
        found = []
        for place in self._places:
            found.append(downs[place.ranks])
            found.append(_float_product(wide[:, place.outputs].t(), beside[:, place.ranks]))
        return found


def room_for(layers: list[list[list[nn.Module]]], device: torch.device) -> int:
    """Return the columns that the adapters of any product need, rounded up to what GPUs like.

    `layers`: of each layer its products, of each product its linears.
    """
    ranks = [
        sum(max((a.shape[0] for a in _downs(linear)), default=0) for linear in product)
        for products in layers
        for product in products
    ]
    granule = 64 if device.type == "cuda" else 8
    return max(-(-max(ranks, default=0) // granule), 1) * granule


def _downs(linear: Any) -> list[Tensor]:
    if not is_adapted(linear):
        return []
    return [module.weight for module in linear.lora_A.values()]


def _bias(bases: list[Any]) -> Tensor | None:
    if all(base.bias is None for base in bases):
        return None
    return torch.cat([
        base.weight.new_zeros(base.out_features) if base.bias is None else base.bias.data
        for base in bases
    ])  # fmt: skip


def _float_product(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right in float32; GPUs add up bf16 products so without a further pass."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()
