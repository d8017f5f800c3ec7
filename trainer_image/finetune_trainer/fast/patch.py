"""Layers exchanged in place, and back."""

import functools
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

from torch import Tensor, nn

from finetune_trainer.attention import PACKED, register
from finetune_trainer.fast import head, spec
from finetune_trainer.fast.adapters import NotUnderstood
from finetune_trainer.fast.attention import Boundaries, boundaries_of
from finetune_trainer.fast.function import LayerFunction, NormFunction
from finetune_trainer.fast.layer import FastLayer
from finetune_trainer.fast.probe import probed
from finetune_trainer.fast.products import room_for
from finetune_trainer.fast.shared import Shared, backbone_of, causal_of, layers_of


@dataclass
class FastModel:
    """What became of a model; `release` undoes it."""

    shared: Shared
    layers: int
    """Of the model, in all."""
    stock: dict[str, list[int]] = field(default_factory=dict)
    """Layers that stayed as they are, by the reason."""
    scores: bool = False
    """Whether the model takes `scored_positions` and `targets`, and returns `log_probs` of them."""
    undo: list[Any] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """What a log and a status say of it."""
        fast = self.layers - sum(map(len, self.stock.values()))
        reasons = "; ".join(
            f"{len(numbers)} of them stay stock: {why}" for why, numbers in self.stock.items()
        )
        return f"{fast} of {self.layers} layers" + (f" ({reasons})" if reasons else "")

    def release(self) -> None:
        """Make the model an ordinary one again, for a save of all its weights."""
        for undo in reversed(self.undo):
            undo()
        self.undo.clear()
        for layer in self.shared.layers:
            layer.release()
        self.shared.layers.clear()


def patch(model: Any) -> FastModel:
    """Make the layers of a model fast that are understood and prove to compute the same."""
    backbone = backbone_of(model)
    found = layers_of(backbone)
    done = FastModel(Shared(), len(found))
    understood: dict[int, spec.LayerSpec] = {}
    for number, layer in enumerate(found):
        try:
            understood[number] = spec.read(layer)
        except NotUnderstood as reason:
            done.stock.setdefault(str(reason), []).append(number)
    if not understood:
        return done
    last = _last_norm(backbone)
    room = room_for(
        [_products(each) for each in understood.values()], next(model.parameters()).device
    )
    made, refused = probed(backbone, found, understood, room)
    for why, numbers in refused.items():
        done.stock.setdefault(why, []).extend(numbers)
    for number, fast in made.items():
        _exchange(found[number], fast, done)
    if made:
        _watch(backbone, done)
        if last is not None:
            _exchange_norm(backbone.norm, last, done)
        _exchange_head(causal_of(model), done)
    return done


def _products(each: spec.LayerSpec) -> list[list[nn.Module]]:
    return [each.query_key_value, [each.attention_out], each.gate_up, [each.down]]


def _last_norm(backbone: Any) -> Any:
    try:
        return spec.norm_of(backbone.norm)
    except (NotUnderstood, AttributeError):
        return None


def _exchange(layer: nn.Module, fast: FastLayer, done: FastModel) -> None:
    stock, shared = layer.forward, done.shared
    shared.layers.append(fast)

    @functools.wraps(stock)
    def forward(
        _self: nn.Module,
        hidden_states: Tensor,
        *args: Any,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        if shared.rows is None or position_embeddings is None:
            return stock(hidden_states, *args, position_embeddings=position_embeddings, **kwargs)
        batch = shared.batch(hidden_states, position_embeddings)
        return LayerFunction.apply(hidden_states, fast, shared, batch, *fast.trained)

    layer.forward = MethodType(forward, layer)
    done.undo.append(lambda: layer.__dict__.pop("forward"))


def _exchange_norm(module: nn.Module, last: Any, done: FastModel) -> None:
    stock, shared = module.forward, done.shared

    def forward(_self: nn.Module, hidden_states: Tensor) -> Any:
        if shared.rows is None:
            return stock(hidden_states)
        return NormFunction.apply(hidden_states, last)

    module.forward = MethodType(forward, module)
    done.undo.append(lambda: module.__dict__.pop("forward"))


def _exchange_head(causal: Any, done: FastModel) -> None:
    """Let a causal model score positions without its logits ever being there as a whole."""
    found = head.read(causal)
    if found is None:
        return
    stock = causal.forward

    @functools.wraps(stock)
    def forward(
        _self: nn.Module,
        *args: Any,
        scored_positions: Tensor | None = None,
        targets: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if scored_positions is None or targets is None:
            return stock(*args, **kwargs)
        hidden = causal.base_model(*args, **kwargs).last_hidden_state
        rows = hidden.flatten(0, 1).index_select(0, scored_positions)
        return head.Scored(head.log_probabilities(rows, found, targets))

    had = causal.__dict__.get("forward")
    causal.forward = MethodType(forward, causal)
    done.scores = True

    def undo() -> None:
        if had is None:
            del causal.forward
        else:
            causal.forward = had

    done.undo.append(undo)


def _watch(backbone: Any, done: FastModel) -> None:
    """Give every forward of the backbone its boundaries, and stock layers the attention for them."""
    shared = done.shared
    register()
    configs = list(
        {id(m.config): m.config for m in backbone.modules() if hasattr(m, "config")}.values()
    )
    before = backbone.config._attn_implementation

    def begin(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rows = _boundaries(backbone, args, kwargs)
        shared.begin(rows)
        for config in configs:
            config._attn_implementation_internal = before if rows is None else PACKED
        if rows is None:
            return None
        return args, {**kwargs, **rows.arguments, "use_cache": False}

    hook = backbone.register_forward_pre_hook(begin, with_kwargs=True)

    def end() -> None:
        hook.remove()
        for config in configs:
            config._attn_implementation_internal = before

    done.undo.append(end)


def _boundaries(backbone: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Boundaries | None:
    """Return the boundaries of a forward; None: it is one for the stock layers (generation)."""
    uses_cache = kwargs.get("use_cache")
    if uses_cache is None:
        uses_cache = backbone.config.use_cache and not backbone.training
    mask = kwargs.get("attention_mask")
    if kwargs.get("past_key_values") is not None or uses_cache:
        return None
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
        return None
    if (ends := kwargs.get("cu_seq_lens_q")) is not None:
        return Boundaries(ends, int(kwargs["max_length_q"]))
    tokens = next(
        each
        for each in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args)
        if isinstance(each, Tensor)
    )
    shape = (tokens.shape[0], tokens.shape[1])
    return boundaries_of(shape, kwargs.get("position_ids"), mask, tokens.device)
