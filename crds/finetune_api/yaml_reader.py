"""Manifests read as kubectl reads them: go-yaml v2, then JSON (sigs.k8s.io/yaml).

Stricter than kubectl where it drops or guesses in silence: a key given twice, text after the end of
a document, floats as keys. Text without quotes holds no tabs. Nothing may be read with another
meaning; a contract test compares with the real kubectl.
"""

import math
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.error import Mark
from yaml.events import AliasEvent, ScalarEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from finetune_api.yaml_scalars import PLAIN, TAG, Scalar, json_number, resolve

MAXIMUM_BYTES = 4 * 1024 * 1024
MAXIMUM_NODES = 100_000
MAXIMUM_DEPTH = 100


class ManifestError(ValueError):
    """A manifest that cannot be read: where, what was seen, what must hold."""


def read_documents(text: str, *, source: str) -> list[dict[str, Any]]:
    """Return the objects of a YAML or JSON text; empty documents are left out.

    Raises ManifestError with `source:line:column`.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAXIMUM_BYTES:
        raise ManifestError(f"{source}: {size} bytes; a manifest has at most {MAXIMUM_BYTES}")
    nodes = 0
    documents = []
    for first_line, chunk in _split(text, source=source):
        document = _Document(source=source, first_line=first_line, nodes=nodes)
        value = document.read(chunk)
        nodes = document.nodes
        if value is not None:
            documents.append(value)
    return documents


def _split(text: str, *, source: str) -> list[tuple[int, str]]:
    # As k8s.io/apimachinery's YAMLReader: every line that starts with `---` separates.
    chunks: list[tuple[int, list[str]]] = [(0, [])]
    for number, line in enumerate(text.split("\n")):
        if not line.startswith("---"):
            chunks[-1][1].append(line)
            continue
        rest = line[3:].strip()
        if rest and not rest.startswith("#"):
            raise ManifestError(
                f"{source}:{number + 1}:4: text after `---`; begin the document on the next line"
            )
        chunks.append((number + 1, []))
    return [
        (first, "\n".join(lines))
        for first, lines in chunks
        if any(line.strip(" \r") for line in lines)
    ]


class _Loader(yaml.SafeLoader):
    """PyYAML's grammar, brought to libyaml's (go-yaml v2 is a port of it), and bounded."""

    def __init__(self, text: str, *, nodes: int) -> None:
        super().__init__(text)
        self.nodes = nodes
        self.depth = 0

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        """Leave plain scalars to `yaml_scalars`."""
        del value
        return PLAIN if kind is not ScalarNode or implicit[0] else f"{TAG}str"

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Compose one node within the bounds; an anchor may be given again, as in go-yaml."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        self.nodes += 1
        self.depth += 1
        if self.depth > MAXIMUM_DEPTH:
            problem = f"nested deeper than {MAXIMUM_DEPTH} levels"
            raise ComposerError(None, None, problem, event.start_mark)
        if self.nodes > MAXIMUM_NODES:
            raise ComposerError(None, None, f"more than {MAXIMUM_NODES} values", event.start_mark)
        if not isinstance(event, AliasEvent):
            self.anchors.pop(event.anchor, None)
        node = super().compose_node(parent, index)
        if isinstance(event, ScalarEvent) and isinstance(node, ScalarNode) and event.tag == "!":
            node.tag = "!"  # makes any scalar a string
        self.depth -= 1
        return node

    def scan_to_next_token(self) -> None:
        """Skip tabs too where libyaml does: in flow style, and after a token of a block line."""
        while True:
            super().scan_to_next_token()
            if self.peek() != "\t" or not (self.flow_level or not self.allow_simple_key):
                return
            while self.peek() in " \t":
                self.forward()


class _Document:
    """One document of a text, on its way from YAML nodes to JSON values."""

    def __init__(self, *, source: str, first_line: int, nodes: int) -> None:
        self.source = source
        self.first_line = first_line
        self.nodes = nodes

    def read(self, chunk: str) -> dict[str, Any] | None:
        """Return the object, or None of an empty document."""
        root = self._composed(chunk)
        if root is None:
            return None
        value = self._value(root, open_nodes=())
        if isinstance(value, dict | None):
            return value
        raise self._error(root, "a document must be a mapping of fields")

    def _composed(self, chunk: str) -> Node | None:
        try:
            return _Loader(chunk, nodes=self.nodes).get_single_node()
        except ReaderError as error:
            before = chunk[: error.position]
            column = error.position - before.rfind("\n") - 1
            problem = f"character U+{ord(chunk[error.position]):04X} is not allowed"
            line = before.count("\n")
            raise self._error_at(line, column, f"{problem}; write it as an escape") from None
        except yaml.MarkedYAMLError as error:
            problem = ", ".join(part for part in (error.context, error.problem) if part)
            mark = error.problem_mark or error.context_mark or Mark("", 0, 0, 0, "", 0)
            raise self._error_at(mark.line, mark.column, problem) from None

    def _error(self, node: Node, problem: str) -> ManifestError:
        return self._error_at(node.start_mark.line, node.start_mark.column, problem)

    def _error_at(self, line: int, column: int, problem: str) -> ManifestError:
        where = f"{self.source}:{self.first_line + line + 1}:{column + 1}"
        return ManifestError(f"{where}: {problem[:200]}")

    def _value(self, node: Node, *, open_nodes: tuple[Node, ...]) -> Any:
        self.nodes += 1
        if self.nodes > MAXIMUM_NODES:
            problem = f"more than {MAXIMUM_NODES} values after aliases; write fewer"
            raise self._error(node, problem)
        if node in open_nodes:  # nodes are equal only to themselves
            raise self._error(node, "an anchored value contains itself")
        if len(open_nodes) >= MAXIMUM_DEPTH:
            raise self._error(node, f"nested deeper than {MAXIMUM_DEPTH} levels")
        if isinstance(node, MappingNode):
            return self._mapping(node, open_nodes=(*open_nodes, node))
        if isinstance(node, SequenceNode):
            inner = (*open_nodes, node)
            return [self._value(item, open_nodes=inner) for item in node.value]
        return self._json(node, self._scalar(node))

    def _mapping(self, node: MappingNode, *, open_nodes: tuple[Node, ...]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        written: set[str] = set()
        for key_node, value_node in node.value:
            if _is_merge(key_node):
                # In the order of the text, as go-yaml v2: what comes later wins.
                fields.update(self._merged(value_node, open_nodes=open_nodes))
                continue
            key = self._key(key_node)
            if key in written:
                problem = f"key `{key[:64]}` is given twice; keep one"
                raise self._error(key_node, problem)
            written.add(key)
            fields[key] = self._value(value_node, open_nodes=open_nodes)
        return fields

    def _merged(self, node: Node, *, open_nodes: tuple[Node, ...]) -> dict[str, Any]:
        # Of a sequence, earlier mappings win.
        sources = reversed(node.value) if isinstance(node, SequenceNode) else [node]
        fields: dict[str, Any] = {}
        for source in sources:
            if not isinstance(source, MappingNode):
                raise self._error(node, "`<<` needs a mapping, or a list of mappings")
            fields.update(self._value(source, open_nodes=open_nodes))
        return fields

    def _key(self, node: Node) -> str:
        if not isinstance(node, ScalarNode):
            raise self._error(node, "a key must be a single word, not a list or mapping")
        value = self._scalar(node)
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str) or (isinstance(value, int) and -(2**63) <= value < 2**63):
            return str(self._json(node, value))
        raise self._error(node, f"`{node.value[:64]}` cannot be a key; quote it")

    def _scalar(self, node: Node) -> Scalar:
        try:
            return resolve(node.tag, node.value)
        except ValueError:
            name = node.tag.removeprefix(TAG)
            problem = f"the text is not the {name} that its tag `!!{name}` announces; correct one"
            raise self._error(node, problem) from None

    def _json(self, node: Node, value: Scalar) -> Scalar:
        if isinstance(value, str):
            try:
                return value.encode("utf-16", "surrogatepass").decode("utf-16")
            except UnicodeDecodeError:
                raise self._error(node, "half of a surrogate pair in `\\u`") from None
        if value is None or isinstance(value, bool):
            return value
        if not math.isfinite(value):
            problem = f"`{node.value}` has no form in JSON; write a number, or quote it"
            raise self._error(node, problem)
        return json_number(value)


def _is_merge(node: Node) -> bool:
    return (
        isinstance(node, ScalarNode) and node.value == "<<" and node.tag in (PLAIN, f"{TAG}merge")
    )
