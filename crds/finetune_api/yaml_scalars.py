"""What a YAML scalar stands for: the rules of go-yaml v2, which kubectl reads manifests with."""

import base64
import math
import re
from decimal import Decimal

Scalar = bool | int | float | str | None

TAG = "tag:yaml.org,2002:"
PLAIN = ""
"""Tag of a scalar without quotes and without a tag: its text decides what it is."""


def _spelled(*words: str) -> list[str]:
    return [form for word in words for form in (word, word.title(), word.upper())]


# resolve.go of go-yaml v2: YAML 1.1 words, but neither base 60 nor timestamps.
_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(["", "~", *_spelled("null")]),
    **dict.fromkeys(_spelled("y", "yes", "true", "on"), True),
    **dict.fromkeys(_spelled("n", "no", "false", "off"), False),
    **dict.fromkeys([".nan", ".NaN", ".NAN"], math.nan),
    **dict.fromkeys(_spelled(".inf", "+.inf"), math.inf),
    **dict.fromkeys(_spelled("-.inf"), -math.inf),
}
_INTEGER = re.compile(
    r"(?P<sign>[-+]?)(?:0[xX](?P<b16>[0-9a-fA-F]+)|0[oO](?P<b8>[0-7]+)|0[bB](?P<b2>[01]+)"
    r"|0(?P<octal>[0-7]+)|(?P<b10>0|[1-9][0-9]*))"
)
_SIGN_INSIDE = re.compile(r"0b(?P<b2>[-+][01]+)")  # go-yaml's own mistake: `0b-11` is -3
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INNER = re.compile(r"(?<=[0-9])_(?=[0-9])")
_BASES = {"b16": 16, "b8": 8, "b2": 2, "octal": 8, "b10": 10}


def resolve(tag: str, text: str) -> Scalar:
    """Return what a scalar stands for; ValueError when its text is not what its tag says."""
    name = tag.removeprefix(TAG)
    if name == "binary":
        data = base64.b64decode(re.sub(r"[\r\n]", "", text), validate=True)
        return data.decode("utf-8", "replace")
    if tag == PLAIN:
        return resolve_plain(text)
    wanted: dict[str, tuple[type, ...]] = {
        "null": (type(None),), "bool": (bool,), "int": (int,), "float": (int, float),
    }  # fmt: skip
    if tag == name or name not in wanted:
        return text  # `!!str`, and tags that mean nothing to Kubernetes
    value = resolve_plain(text)
    if type(value) not in wanted[name]:
        raise ValueError(text)
    return value


def resolve_plain(text: str) -> Scalar:
    """Return what a scalar without quotes stands for in go-yaml v2."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in ".+-0123456789":
        return text
    # After a leading dot only underscores between digits go: strconv.ParseFloat's own rule.
    digits = _INNER.sub("", text) if text[0] == "." else text.replace("_", "")
    integer = _integer(digits)
    number = _float(digits) if integer is None else integer
    return text if number is None else number


def _integer(digits: str) -> int | None:
    match = _INTEGER.fullmatch(digits) or _SIGN_INSIDE.fullmatch(digits)
    if match is None:
        return None
    group = str(match.lastgroup)
    if group == "b10" and len(match[group]) > 20:
        return None  # beyond 64 bits; Python refuses to read integers of thousands of digits
    sign = match.groupdict().get("sign", "")
    value = int(f"{sign}{match[group]}", _BASES[group])
    return value if -(2**63) <= value < (2**63 if sign else 2**64) else None


def _float(digits: str) -> float | None:
    value = float(digits) if _FLOAT.fullmatch(digits) else math.inf
    return value if math.isfinite(value) else None


def json_number(value: int | float) -> int | float:
    """Return a number as it is after JSON: 1e3 is whole, what is beyond int64 is a float."""
    shortest = Decimal(repr(value))
    if shortest != shortest.to_integral_value() or not -(2**63) <= shortest < 2**63:
        return float(value)
    return int(shortest)
