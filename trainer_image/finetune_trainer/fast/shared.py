"""What the fast layers of one model share: which adapters are on, and the batch that is under way."""

from typing import Any

from torch import Tensor, nn

from finetune_trainer.fast.attention import Boundaries
from finetune_trainer.fast.layer import Batch, FastLayer

Names = tuple[str, ...]


class Shared:
    """State of a patched model."""

    def __init__(self) -> None:
        """Start without layers."""
        self.layers: list[FastLayer] = []
        self.rows: Boundaries | None = None
        """Of the batch under way; None: the stock layers run."""
        self.names: Names = ()
        self._tables: tuple[Tensor, tuple[Tensor, Tensor]] | None = None
        self._handed: Tensor | None = None

    def begin(self, rows: Boundaries | None) -> None:
        """Take the boundaries of a batch, and the adapters as they are now."""
        self.rows, self._tables, self._handed = rows, None, None
        if rows is not None:
            self.use(self._active_names())
            self.refresh()

    def use(self, names: Names) -> None:
        """Use the adapters of some names in all layers."""
        if names != self.names:
            self.names = names
            for layer in self.layers:
                for product in layer.products:
                    product.bind(names)

    def refresh(self) -> None:
        """Bring the folded adapters to what their parameters are: no optimizer has to tell."""
        for layer in self.layers:
            for product in layer.products:
                product.refresh()

    def _active_names(self) -> Names:
        """Return the adapters that are on; PEFT switches those of all layers together."""
        return next((names for layer in self.layers if (names := layer.active_names())), ())

    def batch(self, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Batch:
        """Return what a layer needs of the batch; tables are flattened once for layers that share them."""
        assert self.rows is not None, "a batch is under way"
        if self._tables is None or self._tables[0] is not position_embeddings[0]:
            count = hidden.shape[0] * hidden.shape[1]
            cosines, sines = (
                table.expand(hidden.shape[0], -1, -1).reshape(count, -1)
                for table in position_embeddings
            )
            self._tables = (position_embeddings[0], (cosines, sines))
        return Batch(self._tables[1], self.rows)

    def hand_on(self, wide: Tensor | None) -> None:
        """Keep a gradient whose columns beside are free, for the layer below."""
        self._handed = wide

    def handed(self, gradient: Tensor) -> Tensor | None:
        """Return the buffer that a gradient [.., H] is the beginning of, if it was handed on."""
        wide, self._handed = self._handed, None
        if (
            wide is None
            or wide.data_ptr() != gradient.data_ptr()
            or gradient.stride(-2) != wide.stride(0)
            or gradient.numel() // gradient.shape[-1] != wide.shape[0]
        ):
            return None
        return wide


def backbone_of(model: Any) -> Any:
    """Return the stack of layers of a causal model, with PEFT around it or not."""
    return causal_of(model).base_model


def causal_of(model: Any) -> Any:
    """Return the causal model itself, without PEFT around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def layers_of(backbone: Any) -> list[nn.Module]:
    """Return the decoder layers of a backbone; none where it has no such list."""
    found = getattr(backbone, "layers", None)
    return list(found) if isinstance(found, nn.ModuleList) else []
