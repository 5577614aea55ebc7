"""Tensors by name inside what a pickle holds: a mapping, or a module pickled whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenizers_vq.conversion import zips
from tokenizers_vq.conversion.unpickling import Inert, Name
from tokenizers_vq.text import printable

MOST_NAMES = 100_000
"""tensors of one file"""
_MOST_ENTRIES = 200_000
_LONGEST = 500
_DEEPEST, _SHOWN = 64, 40
_HELD = ("_parameters", "_buffers", "_modules")


def module_tensors(module: Any, path: Path) -> dict[str, Tensor]:
    """Parameters and saved buffers by dotted name of a module pickled whole, as its `state_dict` would give them.

    `module` is what `pickles.read` gives for it or a part of that, `path` its file. Raises `ValueError` for something
    else, and for modules inside one another without end.
    """
    if not isinstance(module, Inert) or "_modules" not in module.attributes():
        raise ValueError(
            f"{path} holds an object of {_class_of(module)}, not tensors by name; nothing of it was run: give a "
            "checkpoint of weights"
        )
    found: dict[str, Tensor] = {}
    for prefix, attributes in walk(module, lambda attributes: entries(attributes.get("_modules")), path):
        unsaved = attributes.get("_non_persistent_buffers_set")
        unsaved = unsaved if isinstance(unsaved, (set, frozenset)) else ()
        for kind in _HELD[:2]:
            for name, value in entries(attributes.get(kind)):
                if isinstance(value, Tensor) and name not in unsaved:
                    found[f"{prefix}{name}"] = value
    return by_name(found, path)


def walk(
    module: Inert, parts: Callable[[dict[str, Any]], Iterable[tuple[str, Any]]], path: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Prefix and attributes of a module and of those inside it, which `parts` gives by name; of none inside itself.

    A module that stands in several places is met in each. Raises `ValueError` where they are too many or too deep.
    """
    left = _MOST_ENTRIES
    waiting: list[tuple[str, Inert, tuple[int, ...]]] = [("", module, ())]
    while waiting:
        prefix, part, above = waiting.pop()
        attributes = part.attributes()
        left -= 1 + len(attributes)
        left -= sum(len(held) for kind in _HELD if isinstance(held := attributes.get(kind), Mapping))
        if left < 0 or len(above) > _DEEPEST or len(prefix) > _LONGEST:
            raise ValueError(f"{path} holds modules inside one another over and over: it is not a checkpoint")
        yield prefix, attributes
        inside = (*above, id(part))
        children = [
            (f"{prefix}{name}.", child, inside)
            for name, child in parts(attributes)
            if isinstance(child, Inert) and id(child) not in inside
        ]
        waiting.extend(reversed(children))


def by_name(tensors: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """The tensors of a mapping whose key is a name.

    Raises `ValueError` for more than a checkpoint has, for tensors that together are far larger than their file (views
    can be: of one element, or each of the whole), and for names that are immense or have control characters.
    """
    found = {key: value for key, value in tensors.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if len(found) > MOST_NAMES:
        raise ValueError(f"{path} holds {len(found):,} tensors; the limit is {MOST_NAMES:,}: it is not a checkpoint")
    for name in found:
        if len(name) > 2 * _LONGEST or printable(name) != name or "\n" in name:
            shown = printable(name[:_SHOWN].replace("\n", "\\n"))
            raise ValueError(f"{path} holds a tensor with no proper name, '{shown}': it is not a checkpoint")
    if sum(tensor.numel() * tensor.itemsize for tensor in found.values()) > zips.room(path):
        raise ValueError(f"{path} holds tensors that are far larger than the file: it is not a checkpoint")
    return found


def _class_of(content: Any) -> str:
    if not isinstance(content, Inert):
        return type(content).__name__
    name = ".".join(content.name) if isinstance(content.name, Name) else "an unknown class"
    return printable(" ".join(name.split()))


def entries(value: Any) -> list[tuple[str, Any]]:
    """What a mapping has by name; empty for something else."""
    if not isinstance(value, Mapping):
        return []
    return [(key, entry) for key, entry in value.items() if isinstance(key, str) and len(key) <= _LONGEST]
