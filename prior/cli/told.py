"""What a prior is told, as options of the command: one for each of its conditions, by their names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from tokenizers_vq.config import nearest

if TYPE_CHECKING:
    from prior.chain import Chain
    from prior.conditions import Condition


def split(given: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Arguments that no option of the command claimed -> `FIELD=VALUE`s, and the values of each `--name`.

    Raises `ValueError` for an option without a value.
    """
    fields: list[str] = []
    options: dict[str, list[str]] = {}
    rest = iter(given)
    for one in rest:
        if not one.startswith("-"):
            fields.append(one)
            continue
        name, equals, value = one.lstrip("-").partition("=")
        found = value if equals else next(rest, None)
        if found is None:
            raise ValueError(f"{one}: give a value behind it")
        options.setdefault(name, []).append(found)
    return fields, options


def rows(
    condition: Condition | Chain, options: Mapping[str, Sequence[str]], total: int, known: Sequence[str] = ()
) -> Any:
    """What each of `total` samples is told: what the options say in all combinations, in turn; None for nothing at all.

    Of a class that no option names, all in turn. `known`: the command's other options, for a misspelt one. Raises
    `ValueError` for an option of what the prior is not told, and for values that it cannot be.
    """
    from prior.decoding import spread

    parts = {option(name): part for name, part in condition.parts.items()}
    for name in options:
        if name not in parts:
            raise ValueError(_unknown(name, condition, [*parts, *known]))
    values = []
    for name, part in parts.items():
        try:
            asked = [one for text in options.get(name, ()) for one in part.read(text)]
            values.append(asked or part.every())
        except ValueError as error:
            raise ValueError(f"--{name}: {error}") from None
    found = [dict(zip(condition.parts, one, strict=True)) for one in product(*values)]
    asked = math.prod(len(one) for name, one in zip(parts, values, strict=True) if name in options)
    if asked > total:
        raise ValueError(
            f"{asked} kinds of images are asked for, but {total} images: leave some out, or draw more with --count"
        )
    if all(value is None for row in found for value in row.values()):
        return None
    return spread([row if len(parts) > 1 else next(iter(row.values())) for row in found], total)


def option(name: str) -> str:
    """A condition's name as an option is written, without the dashes."""
    return name.replace("_", "-").replace(" ", "-").lower()


def _unknown(name: str, condition: Condition | Chain, known: Sequence[str]) -> str:
    if name not in ("text", "class", "image"):
        hint = nearest(name, known).replace("mean '", "mean '--")
        if "did you mean" in hint:
            return f"--{name}: no such option{hint}"
    parts = [f"--{option(part)}" for part in condition.parts]
    return f"--{name}: this prior is told no {name}; it is told {' and '.join(parts) or 'nothing'}: leave --{name} out"
