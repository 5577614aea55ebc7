"""Text of files and for the terminal: YAML and JSON of strangers within bounds, names without control characters.

What YAML and JSON have in common is what is read: mappings whose keys are strings, lists, strings, numbers, booleans
and null. A file that would cost far more than its size (aliases that multiply, nesting without end) is refused before
anything is built from it.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

import yaml

MOST_JSON = 8 << 20
"""bytes of a JSON text"""
MOST_YAML = 256 << 10
"""bytes of a YAML text, which is read a hundred times more slowly"""
DEEPEST = 64
"""levels of mappings and lists inside one another"""
MOST_NODES = 100_000
"""values of a YAML text, those of an alias counted wherever it stands"""
LARGEST = 2**63 - 1
"""magnitude of a whole number"""

_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_PLAIN = {f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null")}


class _Loader(yaml.SafeLoader):
    """YAML that reads `1e-4` as a number, as people write learning rates (YAML 1.1 wants `1.0e-4`), no dates."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def parse_yaml(text: str) -> Any:
    """The content of a YAML text, aliases resolved. Raises `ValueError`, one line, for what is no YAML or too much."""
    if len(text) > MOST_YAML:
        raise ValueError(f"has {len(text):,} characters; the limit is {MOST_YAML:,}")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(node)
        content = loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from None
    except _RefusedError:
        raise
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} levels deep") from None
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"not valid YAML: a value is not of the kind that it says ({error})") from None
    _check_values(content)
    return content


class _RefusedError(ValueError):
    """Sound YAML that is not read here."""

    def __init__(self, node: Any, problem: str) -> None:
        super().__init__(f"line {node.start_mark.line + 1}, column {node.start_mark.column + 1}: {problem}")


def _check_nodes(root: Any) -> None:
    """Raises `ValueError` for a graph of nodes that is no tree of bounded depth and size, written out."""
    waiting, seen = [(root, 1)], 0
    while waiting:
        node, depth = waiting.pop()
        seen += 1
        if depth > DEEPEST:
            raise _RefusedError(node, f"nested more than {DEEPEST} levels deep, or an alias to itself")
        if seen > MOST_NODES:
            raise _RefusedError(node, f"more than {MOST_NODES:,} values, those of aliases included")
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            waiting.extend((child, depth + 1) for pair in reversed(node.value) for child in reversed(pair))
        elif isinstance(node, yaml.SequenceNode):
            waiting.extend((child, depth + 1) for child in reversed(node.value))
        elif node.tag not in _PLAIN and node.tag not in (_MERGE, f"{_TAG}value"):
            raise _RefusedError(
                node, f"a value of {node.tag.removeprefix(_TAG)!r}: only text, numbers, true, false, null"
            )
        if not isinstance(node, yaml.ScalarNode) and node.tag not in (f"{_TAG}map", f"{_TAG}seq"):
            raise _RefusedError(node, f"a value of {node.tag.removeprefix(_TAG)!r}: only mappings and lists")


def _check_keys(node: Any) -> None:
    names = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag not in (f"{_TAG}str", f"{_TAG}value", _MERGE):
            written = f" {key.value!r}" if isinstance(key, yaml.ScalarNode) else ""
            raise _RefusedError(key, f"the key{written} is not text: put it in quotes")
        if key.tag != _MERGE and key.value in names:
            raise _RefusedError(key, f"{key.value!r} appears twice: keep one")
        names.add(key.value)


def parse_json(text: str, most: int = MOST_JSON) -> Any:
    """The content of a JSON text. Raises `ValueError`, one line, for what is no JSON, stands twice, or is too much."""
    if len(text) > most:
        raise ValueError(f"has {len(text):,} characters; the limit is {most:,}")
    try:
        content = json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} levels deep") from None
    except ValueError as error:
        raise ValueError(f"not valid JSON ({error})") from None
    _check_values(content)
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} appears twice: keep one")
        found[name] = value
    return found


def _check_values(content: Any) -> None:
    waiting = [(content, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} levels deep")
        if isinstance(value, dict):
            waiting.extend((child, depth + 1) for child in value.values())
        elif isinstance(value, list):
            waiting.extend((child, depth + 1) for child in value)
        elif type(value) is int and abs(value) > LARGEST:
            raise ValueError(f"a whole number of {value.bit_length()} bits; the limit is 63")


def printable(text: object) -> str:
    """`text` with control characters, which a terminal would obey, and lone surrogates written as escapes.

    Also those that turn the direction of the line around. Line breaks and tabs stay.
    """
    return "".join(
        letter.encode("unicode_escape").decode()
        if letter not in "\n\t" and unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else letter
        for letter in str(text)
    )


def cell(text: object) -> Any:
    """`text` for a table of rich: `printable`, and its square brackets no markup."""
    from rich.text import Text

    return Text(printable(text))
