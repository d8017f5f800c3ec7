"""A model's modules and shapes, without building it: from the headers of its weights and its class's text.

Names and shapes stand in the safetensors, sizes in config.json, classes of modules in the source
(`modelcode`). Where a checkpoint's names are not the modules', they agree in their last parts, and that
is how LoRA's targets match.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from finetune_trainer.errors import UserError, reading
from finetune_trainer.modelcode import EMBEDDING, LINEAR, ModelCode

ADAPTABLE = (*LINEAR, *EMBEDDING)
EXPERTS_ADAPTED = frozenset({
    "afmoe", "beam", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1",
    "ernie4_5_moe", "exaone_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa",
    "hunyuan_v1_moe", "longcat_flash", "mellum", "minimax", "minimax_m2", "mixtral", "olmoe",
    "qwen3_moe", "qwen3_next", "qwen3_omni_moe", "qwen3_omni_moe_text",
    "qwen3_omni_moe_thinker", "solar_open",
})  # fmt: skip
"""Model types whose experts PEFT adapts though they are one tensor, as it did when they were layers
(`peft.utils.transformers_weight_conversion`)."""
WEIGHTS, WEIGHT_INDEX = "model.safetensors", "model.safetensors.index.json"
LISTS = ("ModuleList", "ModuleDict", "Sequential")
Shape = tuple[int, ...]
Shapes = dict[str, Shape]


@dataclass(frozen=True)
class Module:
    """What is known of a module."""

    kind: str
    """Its class, where the source names one."""
    shape: Shape | None
    """Of its weight."""
    adaptable: bool
    """PEFT puts an adapter on it: it is linear or an embedding."""
    linear: bool


@dataclass(frozen=True)
class Skeleton:
    """A model as far as `prepare` needs it."""

    config: Any
    causal_class: str
    """Of the causal language model; empty: the model brings its own."""
    shapes: Shapes
    code: ModelCode

    @cached_property
    def modules(self) -> dict[str, Module]:
        """Return the modules by their names."""
        found = {path: m for path, m in self._held.items() if self._is_made(path.split(".")[-1])}
        if len(found) < len(self._held):
            # The checkpoint has names of its own: those of the class count, though no tensor bears them.
            there = {path.split(".")[-1] for path in found}
            kinds = (*ADAPTABLE, *self.code.bases)
            for name in sorted(set(self.code.made) - there):
                if self.code.makes(name, kinds):
                    found[name] = self._module(name, None)
        return found

    @cached_property
    def _held(self) -> dict[str, Module]:
        """Return the modules that have tensors, by the names that the tensors give them."""
        paths: dict[str, Shape | None] = {}
        for name, shape in self.shapes.items():
            owner, _, kind = self._within(name).rpartition(".")
            for path in _and_above(owner):
                paths.setdefault(path, None)
            if kind == "weight":
                paths[owner] = shape
        paths.update(self._tied())
        return {path: self._module(path, shape) for path, shape in paths.items() if path}

    @cached_property
    def head(self) -> str:
        """Return the last part of the name of the output embeddings."""
        tied = self._tied_names()
        return next(iter(tied), "lm_head.weight").split(".")[-2]

    @cached_property
    def embeddings(self) -> int:
        """Return for how many tokens there are input embeddings."""
        shapes = self._embedding_shapes
        rows = {shape[0] for shape in shapes.values()}
        wanted = getattr(self.config, "vocab_size", None)
        return wanted if wanted in rows else max(rows, default=wanted or 0)

    def is_vocabulary(self, name: str) -> bool:
        """Tell whether a tensor is the input or the output embeddings."""
        return name in self._embedding_shapes or name.endswith(f"{self.head}.weight")

    def adapted_shapes(self, targets: list[str] | None) -> list[tuple[int, int]]:
        """Return (outputs, inputs) of the modules that bear an adapter; None: of all linear layers.

        Experts that a model keeps in one tensor count one by one where PEFT adapts them.
        """
        modules = [
            module.shape
            for path, module in self._held.items()
            if module.adaptable
            if (matches(path, targets) if targets is not None else self._is_inner(path, module))
        ]
        experts = [
            shape
            for name, shape in self.shapes.items()
            if self.config.model_type in EXPERTS_ADAPTED and self._within(name) != name
            if targets is None or matches(name.rpartition(".")[0], targets)
        ]
        return [(shape[0], shape[1]) for shape in modules + experts if shape and len(shape) == 2]

    def parameters_of(self, names: list[str]) -> int:
        """Return the number of weights in the modules of some names, which are trained as a whole."""
        shapes = {**{f"{path}.weight": shape for path, shape in self._tied()}, **self.shapes}
        return sum(
            math.prod(shape)
            for name, shape in shapes.items()
            if any(matches(path, names) for path in _and_above(name.rpartition(".")[0]))
        )

    def _is_inner(self, path: str, module: Module) -> bool:
        return module.linear and path.split(".")[-1] != self.head

    def _module(self, path: str, shape: Shape | None) -> Module:
        leaf = path.split(".")[-1]
        made = self.code.made.get(leaf, frozenset())
        matrix = len(shape) == 2 if shape else path in self.code.made
        # Of a module within a list, or within another model, only the shape is known.
        linear = matrix and (not made or self.code.makes(leaf, LINEAR))
        adaptable = linear or (matrix and self.code.makes(leaf, EMBEDDING))
        return Module(min(made, default=""), shape, adaptable=adaptable, linear=linear)

    def _is_made(self, leaf: str) -> bool:
        """Tell whether the model has a module of a name, as far as its source says it all."""
        return leaf.isdigit() or leaf in self.code.made or self.code.composed or not self.code.bases

    def _within(self, name: str) -> str:
        """Return a tensor's name; one of experts that the model keeps in one tensor is theirs."""
        parts = name.split(".")
        for index, part in enumerate(parts[1:], start=1):
            made = self.code.made.get(parts[index - 1])
            own = made is not None and any(name in self.code.bases for name in made)
            if part.isdigit() and own and not self.code.makes(parts[index - 1], LISTS):
                return ".".join([*parts[:index], "fused"])
        return name

    def _tied_names(self) -> dict[str, str]:
        found = self.code.setting(self.causal_class, "_tied_weights_keys")
        return found if isinstance(found, dict) else {}

    def _tied(self) -> Iterator[tuple[str, Shape]]:
        """Yield output embeddings that are no tensor of their own."""
        shape = next(iter(self._embedding_shapes.values()), None)
        for name in self._tied_names():
            path, _, kind = name.rpartition(".")
            leaf = path.split(".")[-1]
            if (
                kind == "weight"
                and shape
                and not any(n.endswith(f"{leaf}.weight") for n in self.shapes)
            ):
                yield path, shape

    @cached_property
    def _embedding_shapes(self) -> Shapes:
        """Return the shapes of the input embeddings: where the class says they are, or the largest."""
        leaves = {".".join(name.split(".")[-2:]) for name in self._tied_names().values()}
        matrices: Shapes = {name: shape for name, shape in self.shapes.items() if len(shape) == 2}
        named = {n: s for n, s in matrices.items() if ".".join(n.split(".")[-2:]) in leaves}
        made = {
            name: shape
            for name, shape in matrices.items()
            if name.endswith(".weight") and self.code.makes(name.split(".")[-2], EMBEDDING)
        }
        return named or made or dict(sorted(matrices.items(), key=lambda item: -item[1][0])[:1])


def _and_above(path: str) -> Iterator[str]:
    parts = path.split(".")
    return (".".join(parts[:end]) for end in range(len(parts), 0, -1))


def matches(path: str, names: list[str]) -> bool:
    """Tell whether a module bears one of some names: the end of its own, or, written out, all of it."""
    return any(
        path == name or path.endswith(f".{name}") or ("." in path and name.endswith(f".{path}"))
        for name in names
    )


def tensor_shapes(folder: Path, named: str) -> Shapes:
    """Return the shapes of the tensors in a folder, from the headers of its safetensors.

    Raises:
        UserError: a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    found: Shapes = {}
    for file in _weight_files(folder, named):
        try:
            with safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                    found[name] = tuple(tensors.get_slice(name).get_shape())
        except SafetensorError as error:
            raise UserError(
                f"{named}: {file} is damaged ({error}); remove that folder, and where it came from"
                " copy the model again"
            ) from error
    return found


def _weight_files(folder: Path, named: str) -> list[Path]:
    """Return the files that transformers reads; others may lie beside them, in forms of their own."""
    single, index = folder / WEIGHTS, folder / WEIGHT_INDEX
    if single.is_file():
        return [single]
    if not index.is_file():
        raise UserError(
            f"{named} has neither {WEIGHTS} nor {WEIGHT_INDEX}; transformers reads these names; rename"
            " its file, or copy the model again"
        )
    with reading(f"{named}: {WEIGHT_INDEX} cannot be read", "copy the model again"):
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [folder / name for name in sorted(names)]
