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


Options = dict[str, list[str | None]]
"""values of each `--name`; None where nothing stands behind it"""


def split(given: Sequence[str]) -> tuple[list[str], Options]:
    """Arguments that no option of the command claimed -> `FIELD=VALUE`s, and the values of each `--name`."""
    fields: list[str] = []
    options: Options = {}
    rest = iter(given)
    for one in rest:
        if not one.startswith("-"):
            fields.append(one)
            continue
        name, equals, value = one.lstrip("-").partition("=")
        options.setdefault(name, []).append(value if equals else next(rest, None))
    return fields, options


def rows(
    condition: Condition | Chain, options: Mapping[str, Sequence[str | None]], total: int, known: Sequence[str] = ()
) -> Any:
    """What each of `total` samples is told: what the options say in all combinations, in turn; None for nothing at all.

    Of a class that no option names, all in turn. `known`: the command's other options, for a misspelt one. Raises
    `ValueError` for an option of what the prior is not told, for one without a value, and for values that it cannot be.
    """
    from prior.decoding import spread

    parts = {option(name): part for name, part in condition.parts.items()}
    for name in options:
        if name not in parts:
            raise ValueError(_unknown(name, condition, [*parts, *known]))
        if None in options[name]:
            raise ValueError(f"--{name}: give a value behind it")
    values = []
    for name, part in parts.items():
        try:
            asked = [one for text in options.get(name, ()) if text is not None for one in part.read(text)]
            values.append(asked or part.every())
        except ValueError as error:
            raise ValueError(f"--{name}: {error}") from None
    found = [dict(zip(condition.parts, one, strict=True)) for one in product(*values)]
    kinds = math.prod(len(one) for name, one in zip(parts, values, strict=True) if name in options)
    if kinds > total:
        raise ValueError(
            f"{kinds} kinds of images are asked for, but {total} images: leave some out, or draw more with --count"
        )
    if all(value is None for row in found for value in row.values()):
        return None
    return spread([row if len(parts) > 1 else next(iter(row.values())) for row in found], total)


def option(name: str) -> str:
    """A condition's name as an option is written, without the dashes."""
    return name.replace("_", "-").replace(" ", "-").lower()


def _unknown(name: str, condition: Condition | Chain, known: Sequence[str]) -> str:
    parts = [f"--{option(part)}" for part in condition.parts]
    told = f"this prior is told no {name}; it is told {' and '.join(parts) or 'nothing'}: leave --{name} out"
    if name in ("text", "class", "image"):
        return f"--{name}: {told}"
    hint = nearest(name, known).replace("mean '", "mean '--")
    return f"--{name}: no such option{hint if 'did you mean' in hint else f', and {told}'}"
