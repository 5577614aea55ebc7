"""Which scales a multi-scale quantizer has on another grid: its own, stretched, or a published table's."""

from __future__ import annotations

import math
from collections.abc import Sequence

_SQUARE = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)
_TALL = (
    ((1, 2, 3, 5, 10, 15, 20, 25, 30, 35, 45, 55, 70), (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 36, 44, 56)),
    ((1, 2, 4, 8, 12, 16, 20, 24, 28, 36, 48, 60, 72), (1, 2, 3, 6, 9, 12, 15, 18, 21, 27, 36, 45, 54)),
    ((1, 2, 3, 6, 9, 15, 21, 27, 33, 39, 48, 63, 78), (1, 2, 2, 4, 6, 10, 14, 18, 22, 26, 32, 42, 52)),
    ((1, 2, 3, 7, 11, 14, 21, 28, 35, 42, 56, 70, 84), (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48)),
    ((1, 2, 4, 6, 10, 16, 22, 30, 38, 46, 60, 74, 90), (1, 2, 2, 3, 5, 8, 11, 15, 19, 23, 30, 37, 45)),
    ((1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 65, 80, 100), (1, 2, 2, 4, 6, 8, 10, 12, 16, 20, 26, 32, 40)),
    ((1, 2, 6, 9, 15, 21, 27, 36, 45, 54, 72, 90, 111), (1, 2, 2, 3, 5, 7, 9, 12, 15, 18, 24, 30, 37)),
)
"""heights and widths of the portrait shapes"""
_COUNTS = (7, 10, 12, 13)
"""scales of images of about 0.06, 0.25, 0.6 and 1 million pixels at stride 16"""


def infinity_scales(last: tuple[int, ...]) -> tuple[tuple[int, int], ...] | None:
    """Infinity's scales that end in this grid (arXiv 2412.04431; its "dynamic" schedules); None where it has none.

    Heights to widths of 1, 1.25, 1.333, 1.5, 1.75, 2, 2.5 and 3, and turned; the first 7, 10, 12 or 13 of each.
    """
    pairs = [(_SQUARE, _SQUARE), *_TALL, *((widths, heights) for heights, widths in _TALL)]
    found = (tuple(zip(*pair, strict=True))[:count] for pair in pairs for count in _COUNTS)
    return next((scales for scales in found if scales[-1] == tuple(last)), None)


def stretched(grids: Sequence[tuple[int, ...]], last: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """As many scales as `grids`, square or not, that end in `last`: a side s of S becomes T ** (log s / log S).

    So scales grow by the same factors on a logarithmic axis (VAR's grow as a^k, arXiv 2404.02905, section 3.2), and
    begin where they began, with 1x1. VAR's ten scales of 16 give 1 2 4 6 7 9 13 18 25 32 for 32; published for 512 px
    are 1 2 3 4 6 9 13 18 24 32. Where T is small, scales are repeated: networks know them by their number.
    """
    sides = [[_stretched(grid[axis], grids[-1][axis], last[axis]) for axis in (0, 1)] for grid in grids[:-1]]
    return (*((height, width) for height, width in sides), (last[0], last[1]))


def _stretched(side: int, old: int, new: int) -> int:
    share = math.log(side) / math.log(old) if old > 1 else 0.0
    return min(new, math.floor(new**share + 0.5))
