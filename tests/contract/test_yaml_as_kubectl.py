"""`read_documents` reads what the installed kubectl reads, and refuses what it would drop."""

import json
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from finetune_api.yaml_reader import MAXIMUM_BYTES, ManifestError, read_documents

KUBECTL = Path(sysconfig.get_path("scripts")) / "kubectl"
HEADER = "apiVersion: finetune.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {name: %s}\n"

SCALARS = (
    # words
    "yes", "Yes", "YES", "yEs", "no", "No", "on", "On", "off", "OFF", "y", "Y", "n", "N", "true",
    "True", "TRUE", "false", "tRUE", "~", "null", "Null", "NULL", "nULL", "", "none", "t", "f",
    # integers
    "0", "-0", "+1", "-17", "010", "-010", "08", "0o10", "0O17", "0o8", "0x1F", "0XfF", "-0x1f",
    "0b101", "-0b11", "0b102", "0b-11", "1_000", "1__0_", "_1", "0x_f", "+_1", "1 000", "1,000",
    "9223372036854775807", "-9223372036854775808", "9223372036854775808", "18446744073709551615",
    "18446744073709551616", "0xFFFFFFFFFFFFFFFFF", "123456789012345678901234567890",
    # floats
    "1e-4", "1.0e-4", "2e5", "1E3", "1e+3", ".5", "-.5", "+.5", "5.", "5.e2", "1.0", "-0.0",
    "1.5_0", ".1_5", "._5", "1e", "e5", "1e400", "1e-400", "0.1", "3.14159265358979", "1e21",
    "1152921504606846976.0", ".", "+", "1.2.3", "1:30", "190:20:30.15", "0.1.2",
    # dates, versions, addresses
    "2020-01-01", "2020-01-01T10:00:00Z", "2001-12-14 21:59:43.10 -5", "12:30:45", "v1.0", "80Gi",
    "https://host/path?a=b#c", "hf://org/name", "nvidia.com/gpu", "<<", "=", "--x",
    # quoted and tagged
    "'yes'", '"1"', '"a\\tb\\u00e9\\n"', "'it''s'", "!!str 1", "!!str yes", "!!str", "!!int '0x10'",
    "!!float 1", "!!float '1e-4'", "!!bool yes", "!!null ''", "! 3", "!local 3", "!!binary aGk=",
    "!!timestamp 2020-01-01", "!<tag:yaml.org,2002:int> 7",
    # flow, comments, blanks
    "[yes, 1e3, ~, 'x']", "{a: 1, b: [c, {d: e}]}", "{a, b: }", '{"a":1}', "{1: a, yes: b}", "[a:b]",
    "{\ta:\t1\t}", "text # comment", "text#no", "\t1", "1\t", "é ü 漢字 😀", "a - b", "a ? b", "-1 -2",
)  # fmt: skip

DOCUMENTS = {
    "literal": "spec:\n  v: |\n    a\n     b\n\n    c\n",
    "folded": "spec:\n  v: >-\n    a\n    b\n\n    c\n      d\n",
    "indented": "spec:\n  v: |2\n      a\n    b\n  w: |+\n    a\n\n",
    "plain-lines": "spec:\n  v: a\n    b\n\n    c\n",
    "quoted-lines": "spec:\n  v: \"a\n    b\\\n    c\"\n  w: 'a\n\n    b'\n",
    "compact-lists": "spec:\n  v:\n  - a\n  - - b\n    - c\n  - x: 1\n    y: 2\n",
    "complex-keys": "spec:\n  ? a\n  : b\n  ? |\n    c\n  : d\n",
    "key-types": "spec: {1: a, 010: b, 0x10: c, yes: d, 2020-01-01: e, '3': f, off: g}\n",
    "alias": "spec:\n  a: &x {k: [1, 2]}\n  b: *x\n  c: [*x, *x]\n",
    "anchor-again": "spec:\n  a: &x 1\n  b: *x\n  c: &x 2\n  d: *x\n",
    "merge": "spec:\n  a: &x {k: 1, l: 2}\n  b:\n    <<: *x\n    l: 3\n",
    "merge-after": "spec:\n  a: &x {k: 1, l: 2}\n  b:\n    l: 3\n    <<: *x\n",
    "merge-list": "spec:\n  a: &x {k: 1}\n  b: &y {k: 2, m: 3}\n  c: {<<: [*x, *y], z: 1}\n",
    "merge-nested": "spec:\n  a: &x {k: {p: 1}}\n  b:\n    <<: *x\n    k: {q: 2}\n",
    "merge-quoted": "spec:\n  a: {'<<': {k: 1}}\n",
    "tabs": "spec:\t# c\n  a:\t1\t# c\n  b: [\n\t1,\n\t2]\n",
    "windows": "spec:\r\n  a: yes\r\n  b: |\r\n    c\r\n    d\r\n",
    "unicode-breaks": 'spec:\n  a: "\\x41\\u263a\\U0001F600\\e\\N\\_"\n',
    "ended": "spec: {a: 1}\n...\n",
    "commented": "# first\nspec: {a: 1} # c\n# last\n",
    "separated": "spec: {a: 1}\n--- # next\n" + HEADER % "separated" + "spec: {a: 2}\n---\n\n",
    "with-empty": "spec: {a: 1}\n---\n# nothing\n---\n~\n---\n"
    + HEADER % "with-empty"
    + "spec: 1\n",
}

JSON_FILES = {
    "json": '{"apiVersion": "v1", "kind": "A", "metadata": {"name": "json"},\n\t"spec": {\n\t\t"a": 1.0,'
    '"b":[1e3,true,null], "c": "\\ud83d\\ude00\\/\\u00e9"}}',
    "flow": "{apiVersion: v1, kind: A, metadata: {name: flow}, spec: {a: yes, b: 'x'}}",
}

REFUSED = {
    "not a number": "spec: {a: .nan}\n",
    "infinite": "spec: {a: -.inf}\n",
    "null key": "spec: {~: 1}\n",
    "list as key": "spec: {[a]: 1}\n",
    "huge key": "spec: {18446744073709551615: a}\n",
    "unknown alias": "spec: {a: *x}\n",
    "contains itself": "spec: &x {a: *x}\n",
    "merge of text": "spec: {<<: x}\n",
    "merge of a list of texts": "spec: {<<: [x]}\n",
    "false tag": "spec: {a: !!int x}\n",
    "tag of another type": "spec: {a: !!bool 1}\n",
    "bad base64": "spec: {a: !!binary '*'}\n",
    "text after separator": "spec: 1\n--- x\n",
    "tab as indent": "spec:\n\ta: 1\n",
    "bad indent": "spec:\n  a: 1\n b: 2\n",
    "two colons": "spec: a: b\n",
    "open quote": "spec: 'a\n",
    "control character": "spec: a\x01\n",
    "aliases without end": "spec:\n  a: &a [1,1,1,1,1,1,1,1,1,1]\n"
    + "".join(
        f"  {new}: &{new} [{','.join([f'*{old}'] * 10)}]\n"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ),
}

STRICTER = {
    "key twice": ("spec:\n  a: 1\n  b: 2\n  a: 3\n", "f.yaml:7:3: key `a` is given twice"),
    "key twice as another type": ("spec: {1: a, '1': b}\n", "f.yaml:4:14: key `1` is given twice"),
    "text after the end": ("spec: 1\n...\nmore: 2\n", "f.yaml:6:1: "),
    "fraction as key": ("spec: {1.5: a}\n", "f.yaml:4:8: `1.5` cannot be a key; quote it"),
    "tab within text": ("spec: a\tb\n", "f.yaml:4:9: "),
}


def _kubectl(*files: Path) -> subprocess.CompletedProcess[str]:
    options = ["--local", "--dry-run=client", "-o", "json", "--kubeconfig=/dev/null"]
    arguments = [argument for file in files for argument in ("-f", str(file))]
    return subprocess.run(
        [KUBECTL, "label", *options, *arguments, "a=b"], capture_output=True, text=True, check=False
    )


def _int64(text: str) -> int | float:
    # kubectl prints floats beyond int64 without an exponent.
    return int(text) if -(2**63) <= int(text) < 2**63 else float(text)


def _objects(output: str) -> dict[str, list[dict[str, Any]]]:
    decoder = json.JSONDecoder(parse_int=_int64)
    found: dict[str, list[dict[str, Any]]] = {}
    while output := output.strip():
        value, end = decoder.raw_decode(output)
        output = output[end:]
        del value["metadata"]["labels"]
        found.setdefault(value["metadata"]["name"], []).append(value)
    return found


def _exact(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _files() -> dict[str, str]:
    lines = "".join(f"  v{number}: {text}\n" for number, text in enumerate(SCALARS))
    texts = {"scalars": f"spec:\n{lines}", **DOCUMENTS}
    return {name: HEADER % name + text for name, text in texts.items()} | JSON_FILES


@pytest.fixture(scope="module")
def read_by_kubectl(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("manifests")
    paths = [folder / f"{name}.yaml" for name in _files()]
    for path, text in zip(paths, _files().values(), strict=True):
        path.write_text(text, "utf-8", newline="")
    result = _kubectl(*paths)
    assert result.returncode == 0, result.stderr
    return _objects(result.stdout)


@pytest.fixture(scope="module")
def scalars_by_us() -> dict[str, Any]:
    [document] = read_documents(_files()["scalars"], source="f.yaml")
    return document["spec"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("number", range(len(SCALARS)), ids=SCALARS)
def test_scalar(
    number: int,
    scalars_by_us: dict[str, Any],
    read_by_kubectl: dict[str, list[dict[str, Any]]],
) -> None:
    [theirs] = read_by_kubectl["scalars"]
    assert _exact(scalars_by_us[f"v{number}"]) == _exact(theirs["spec"][f"v{number}"])


@pytest.mark.parametrize("name", [*DOCUMENTS, *JSON_FILES])
def test_document(name: str, read_by_kubectl: dict[str, list[dict[str, Any]]]) -> None:
    assert _exact(read_documents(_files()[name], source="f.yaml")) == _exact(read_by_kubectl[name])


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_refused_by_both(text: str, tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(HEADER % "x" + text, "utf-8")
    assert _kubectl(path).returncode != 0
    with pytest.raises(ManifestError, match=r"^f\.yaml:\d+:\d+: \S"):
        read_documents(path.read_text("utf-8"), source="f.yaml")


@pytest.mark.parametrize(("text", "message"), STRICTER.values(), ids=STRICTER)
def test_refused_where_kubectl_drops_or_guesses(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(HEADER % "x" + text, "utf-8")
    assert _kubectl(path).returncode == 0
    with pytest.raises(ManifestError) as caught:
        read_documents(path.read_text("utf-8"), source="f.yaml")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "x" * MAXIMUM_BYTES, "at most 4194304"),
        ("[" * 200, "nested deeper than 100 levels"),
        ("a: &a [1]\n" + "b: " + "{c: " * 98 + "*a" + "}" * 98, "nested deeper than 100 levels"),
        ("a: [" + "1," * 100_000 + "]", "more than 100000 values"),
        ("- a\n", "a document must be a mapping"),
        ("just text\n", "a document must be a mapping"),
        ('a: "\\ud83d"\n', "half of a surrogate pair"),
    ],
    ids=["size", "depth", "depth of an alias", "values", "list", "text", "surrogate"],
)
def test_bounds(text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read_documents(text, source="f.yaml")


def test_line_counts_from_the_start_of_the_file() -> None:
    with pytest.raises(ManifestError, match=r"^f\.yaml:4:7: key `b` is given twice"):
        read_documents("a: 1\n---\n\n{b: 1,b: 2}\n", source="f.yaml")


def test_empty_texts_hold_no_documents() -> None:
    assert read_documents("", source="f.yaml") == []
    assert read_documents("---\n# nothing\n---\n~\n", source="f.yaml") == []
