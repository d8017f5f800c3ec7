"""What the text of a model's class tells: which of its modules is of what class. Parsed, never run.

To import a model of transformers takes PyTorch, which `prepare` does without. Its source is installed
all the same, beside the class of its configuration.
"""

import ast
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

LINEAR, EMBEDDING = ("Linear", "Conv1D"), ("Embedding",)
COMPOSED = ("from_config", "_from_config")
"""How a model makes another one, whose source is not read with its own."""


@dataclass(frozen=True)
class ModelCode:
    """The classes of some source files. Empty where a model brings its own code."""

    bases: dict[str, tuple[str, ...]]
    """The classes that a class is made from."""
    made: dict[str, frozenset[str]]
    """The classes of which an attribute is made somewhere; none: by an expression."""
    settings: dict[tuple[str, str], Any]
    """Constants of classes, by class and name."""
    composed: bool
    """It is made from other models, too: not every module stands here."""

    def is_a(self, name: str, roots: Iterable[str]) -> bool:
        """Tell whether a class is one of others, or made from one."""
        return name in roots or any(self.is_a(base, roots) for base in self.bases.get(name, ()))

    def makes(self, attribute: str, roots: Iterable[str]) -> bool:
        """Tell whether an attribute may be of one of some classes."""
        return any(self.is_a(name, roots) for name in self.made.get(attribute, ()))

    def setting(self, name: str, key: str) -> Any:
        """Return a constant of a class or of what it is made from; None: there is none."""
        found = self.settings.get((name, key))
        above = (self.setting(base, key) for base in self.bases.get(name, ()))
        return found if found is not None else next((v for v in above if v is not None), None)


def read_code(config: Any, causal_class: str) -> ModelCode:
    """Return what the source beside a configuration, and beside those within it, tells of a class."""
    within = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    kinds = {type(found) for found in [config, *within] if found is not None}
    folders = {Path(inspect.getfile(kind)).parent for kind in kinds}
    code = _read(frozenset(file for folder in folders for file in folder.glob("modeling_*.py")))
    if not causal_class or causal_class in code.bases:
        return code
    # Some configurations are of another model's class.
    begin, models = f"\nclass {causal_class}(", Path(inspect.getfile(type(config))).parents[1]
    files = (f for f in models.glob("*/modeling_*.py") if begin in f.read_text(encoding="utf-8"))
    return _read(frozenset(list(files)[:1]))


@lru_cache(maxsize=4)
def _read(files: frozenset[Path]) -> ModelCode:
    code = ModelCode({}, {}, {}, composed=False)
    waiting, seen = sorted(files), set(files)
    composed = False
    while waiting:
        file = waiting.pop()
        tree = ast.parse(file.read_text(encoding="utf-8"))
        composed = _collect(tree, code) or composed
        for other in _imported(tree, file):
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    return ModelCode(code.bases, code.made, code.settings, composed)


def _imported(tree: ast.Module, file: Path) -> Iterator[Path]:
    """Yield the files of the models that a model's file builds on."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level and node.module:
            *folders, name = node.module.split(".")
            path = file.parents[node.level - 1].joinpath(*folders, f"{name}.py")
            if name.startswith("modeling_") and folders and path.is_file():
                yield path


def _collect(tree: ast.Module, code: ModelCode) -> bool:
    """Add a file's classes; tell whether it makes other models."""
    for kind in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        code.bases[kind.name] = tuple(filter(None, map(_last_name, kind.bases)))
        for target, value in _assigned(kind.body):
            if isinstance(target, ast.Name) and _is_constant(value):
                code.settings[kind.name, target.id] = ast.literal_eval(value)
        for target, value in _assigned(ast.walk(kind)):
            if isinstance(target, ast.Attribute) and _last_name(target.value) == "self":
                before = code.made.get(target.attr, frozenset())
                code.made[target.attr] = before | _classes(value)
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return any(isinstance(call, ast.Attribute) and call.attr in COMPOSED for call in calls)


def _assigned(nodes: Iterable[ast.AST]) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Yield what is assigned to, and what."""
    for node in nodes:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield target, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            yield node.target, node.value


def _classes(value: ast.expr) -> frozenset[str]:
    """Return the classes that an expression may make an object of, as far as it names them."""
    if isinstance(value, ast.IfExp):
        return _classes(value.body) | _classes(value.orelse)
    name = _last_name(value.func) if isinstance(value, ast.Call) else None
    return frozenset([name] if name else [])


def _last_name(node: ast.expr) -> str | None:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None


def _is_constant(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError):
        return False
    return True
