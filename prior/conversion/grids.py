"""Grids of codes, where a file tells their number alone."""

from __future__ import annotations

import math

from tokenizers_vq.codes import CodeLayout


def grid_of(count: int, made: CodeLayout | None) -> tuple[int, ...]:
    """The grid of so many codes of one image: the named tokenizer's, if it has as many, else a square, else a row."""
    if made is not None and len(made.grids) == 1 and made.length == count:
        return made.grids[0]
    side = math.isqrt(count)
    return (side, side) if side * side == count else (count,)
