"""Values of a published config by name: typed, so that what is of another kind is refused in one line."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any


def part(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The mapping at `name`; empty where there is none. Raises `ValueError` for something else."""
    value = given.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _refused(name, "a mapping", value)
    return value


def whole(given: Mapping[str, Any], name: str, default: int) -> int:
    """The whole number at `name`. Raises `ValueError` for something else."""
    value = given.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
        raise _refused(name, "a whole number", value)
    return int(value)


def number(given: Mapping[str, Any], name: str, default: float) -> float:
    """The number at `name`. Raises `ValueError` for something else."""
    value = given.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _refused(name, "a number", value)
    return float(value)


def wholes(given: Mapping[str, Any], name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """The list of whole numbers at `name`. Raises `ValueError` for something else."""
    value = given.get(name)
    if value is None:
        return default
    if not isinstance(value, (list, tuple)) or not all(type(item) is int for item in value):
        raise _refused(name, "a list of whole numbers", value)
    return tuple(value)


def _refused(name: str, wanted: str, value: Any) -> ValueError:
    return ValueError(f"the config's {name} must be {wanted}, got {reprlib.repr(value)}: give the config of this model")
