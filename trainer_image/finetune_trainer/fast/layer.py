"""A decoder layer's forward and backward on rows laid end to end, [T, H]; one autograd Function."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from finetune_trainer.fast import adapters
from finetune_trainer.fast.attention import Attend, Boundaries
from finetune_trainer.fast.kernels import gate, norm, rotary
from finetune_trainer.fast.products import Product
from finetune_trainer.fast.recompute import DROPPED
from finetune_trainer.fast.spec import LayerSpec


@dataclass(frozen=True)
class Batch:
    """What all layers of a model share in one forward."""

    tables: rotary.Tables
    rows: Boundaries


@dataclass
class Kept:
    """What a forward leaves for its backward; `recompute` tells what of it is let go."""

    rows: Tensor
    """The layer's input, [T, H]."""
    query_key_value: Tensor | None = None
    beside_query_key_value: Tensor | None = None
    out: Tensor | None = None
    """What attention returned, [T, heads x size]."""
    of_attention: Any = None
    beside_out: Tensor | None = None
    attended: Tensor | None = None
    """What attention adds before its norm, where it has one."""
    middle: Tensor | None = None
    """The rows between attention and the gated part, [T, H]."""
    gate_up: Tensor | None = None
    beside_gate_up: Tensor | None = None
    beside_down: Tensor | None = None
    change: Tensor | None = None
    """What the gated part adds before its norm, where it has one."""

    def let_go(self, level: int) -> None:
        """Drop what a level computes again."""
        for name in DROPPED[level]:
            setattr(self, name, None)

    def clear(self) -> None:
        """Drop everything: what a context holds would live until its graph dies."""
        for each in fields(self):
            setattr(self, each.name, None)


class FastLayer:
    """One layer, by its spec."""

    def __init__(self, spec: LayerSpec, room: int) -> None:
        """Fold the layer's linears; from here on their weights are views."""
        self.spec, self.room, self.level = spec, room, 0
        self.query_key_value = Product(spec.query_key_value, room)
        self.out = Product([spec.attention_out], room)
        self.gate_up = Product(spec.gate_up, room)
        self.down = Product([spec.down], room)
        self.attend = Attend(spec.scaling, spec.window)

    @property
    def products(self) -> list[Product]:
        """All products, in the order of their use."""
        return [self.query_key_value, self.out, self.gate_up, self.down]

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        """What is trained, in the order in which `backward` returns gradients."""
        return [parameter for product in self.products for parameter in product.trained]

    def active_names(self) -> tuple[str, ...]:
        """Return the adapters of the layer that are on."""
        adapted = [linear for linear in self.spec.linears if adapters.is_adapted(linear)]
        return adapters.active_names(adapted[0]) if adapted else ()

    def release(self) -> None:
        """Give the modules weights of their own again."""
        for product in self.products:
            product.release()

    def forward(self, rows: Tensor, batch: Batch) -> tuple[Tensor, Kept]:
        """Return the layer's output [T, H] and what the backward needs."""
        spec, kept = self.spec, Kept(rows)
        self._attention(kept, batch)
        wide = self._middle(kept)
        kept.gate_up, kept.beside_gate_up = self.gate_up.forward(wide)
        del wide
        wide = gate.gated(kept.gate_up, spec.activation, self.room)
        change, kept.beside_down = self.down.forward(wide)
        assert kept.middle is not None
        result = norm.add(kept.middle, change, spec.after_gate)
        kept.change = change if spec.after_gate else None
        return result, kept

    def _attention(self, kept: Kept, batch: Batch) -> None:
        """Compute queries, keys and values, and what they attend to."""
        if kept.query_key_value is None:
            wide = norm.normed(kept.rows, self.spec.attention_norm, self.room)
            found, kept.beside_query_key_value = self.query_key_value.forward(wide)
            parts = rotary.rotate(found, batch.tables, self.spec.heads)
            kept.query_key_value = found
        else:
            parts = self._turned(kept.query_key_value, batch)
        if kept.out is None:
            attended, kept.of_attention = self.attend.forward(parts, batch.rows)
            kept.out = attended.flatten(1)

    def _turned(self, query_key_value: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the parts that attention took: where there are no norms they were turned in place."""
        heads = self.spec.heads
        if heads.query_norm is None:
            return heads.split(query_key_value)
        return rotary.rotate(query_key_value, batch.tables, heads)

    def _middle(self, kept: Kept) -> Tensor:
        """Compute the rows between attention and gated part; return them normed, with room."""
        spec = self.spec
        assert kept.out is not None
        change, kept.beside_out = self.out.forward(norm.with_room(kept.out, self.room))
        kept.middle, wide = norm.add_normed(
            kept.rows, change, spec.after_attention, spec.gate_norm, self.room
        )
        kept.attended = change if spec.after_attention else None
        return wide

    def _restore(self, kept: Kept, batch: Batch) -> None:
        """Compute again what was let go."""
        if kept.query_key_value is None or kept.out is None:
            self._attention(kept, batch)
        wide = self._middle(kept) if kept.middle is None else None
        if kept.gate_up is None:
            if wide is None:
                assert kept.middle is not None
                wide = norm.normed(kept.middle, self.spec.gate_norm, self.room)
            kept.gate_up, kept.beside_gate_up = self.gate_up.forward(wide)

    def backward(
        self, wide: Tensor, kept: Kept, batch: Batch, *, input_needs: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Return the gradient of the input, [T, H + room], and those of `trained`.

        `wide` [T, H + room] holds the gradient of the output; its columns beside are free.
        """
        self._restore(kept, batch)
        wide, gated_gradients = self._gated_backward(wide, kept)
        back, attention_gradients = self._attention_backward(wide, kept, batch)
        gradient: Tensor | None = None
        if input_needs:
            gradient, normed = norm.norm_backward(
                self.query_key_value.backward(back), kept.rows, self.spec.attention_norm,
                wide[:, : kept.rows.shape[1]], self.room,
            )  # fmt: skip
        else:
            normed = norm.normed(kept.rows, self.spec.attention_norm, 0)
        first = self.query_key_value.parameter_gradients(back, normed, kept.beside_query_key_value)
        return gradient, [*first, *attention_gradients, *gated_gradients]

    def _gated_backward(self, wide: Tensor, kept: Kept) -> tuple[Tensor, list[Tensor]]:
        """Go back through the gated part; return the gradient of the rows before it, with room."""
        spec, width = self.spec, kept.rows.shape[1]
        assert kept.middle is not None
        assert kept.gate_up is not None
        residual = wide[:, :width]
        if spec.after_gate is not None:
            assert kept.change is not None
            wide, _ = norm.norm_backward(residual, kept.change, spec.after_gate, None, self.room)
        self.down.backward_beside(wide)
        inner = self.down.backward(wide)
        back, activated = gate.gated_backward(inner, kept.gate_up, spec.activation, self.room)
        kept.gate_up = None
        of_down = self.down.parameter_gradients(wide, activated, kept.beside_down)
        del inner, activated
        self.gate_up.backward_beside(back)
        before, normed = norm.norm_backward(
            self.gate_up.backward(back), kept.middle, spec.gate_norm, residual, self.room
        )
        of_gate_up = self.gate_up.parameter_gradients(back, normed, kept.beside_gate_up)
        return before, [*of_gate_up, *of_down]

    def _attention_backward(
        self, wide: Tensor, kept: Kept, batch: Batch
    ) -> tuple[Tensor, list[Tensor]]:
        """Go back through attention; return the gradient of queries, keys and values, with room."""
        spec, width = self.spec, kept.rows.shape[1]
        assert kept.out is not None
        assert kept.query_key_value is not None
        if spec.after_attention is not None:
            assert kept.attended is not None
            arriving, _ = norm.norm_backward(
                wide[:, :width], kept.attended, spec.after_attention, None, self.room
            )
        else:
            arriving = wide
        self.out.backward_beside(arriving)
        of_attended = self.out.backward(arriving)
        of_out = self.out.parameter_gradients(arriving, kept.out, kept.beside_out)
        size = spec.heads.size
        gradients = self.attend.backward(
            of_attended.unflatten(1, (-1, size)),
            self._turned(kept.query_key_value, batch),
            kept.out.unflatten(1, (-1, size)),
            kept.of_attention,
            batch.rows,
        )
        back = rotary.rotate_backward(
            gradients, kept.query_key_value, batch.tables, spec.heads, self.room
        )
        self.query_key_value.backward_beside(back)
        return back, of_out
