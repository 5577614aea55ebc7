"""Results of the tokenizer's parts, and `CodeLayout`: how an image's codes lie in one flat row."""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokenizers_vq import notebooks

Codes = Tensor | tuple[Tensor, ...]
"""int64 codes: `(B, *grid)` or `(B, *grid, L)`; a tuple, coarse first, if and only if there are several grids."""
LONGEST = 2**24
"""most tokens of one image: a square of 4096 positions; beyond it a layout's own tables would not fit into memory"""


class Quantized(NamedTuple):
    """What a quantizer's training forward gives."""

    features: Any
    """`(B, D, *grid)`, the looked-up vectors, a tuple of several grids; gradients as the estimator defines them"""
    codes: Any
    """`Codes`"""
    losses: dict[str, Tensor]
    """scalars that sum at weight 1"""
    stats: dict[str, Tensor]
    """scalars for the log, without gradient"""


class Output(NamedTuple):
    """What a tokenizer's forward gives."""

    images: Any
    """`(B, C, H, W)`, mapped to [-1, 1] but never clamped; None where they were not asked for"""
    output: Any
    """the decoder's raw output"""
    features: Any
    """`(B, D, *grid)` before the quantizer, a tuple of several grids"""
    quantized: Any
    """`Quantized`"""


@dataclass(frozen=True)
class CodeLayout:
    """Shape of one image's codes and their order in a flat row of `length` tokens.

    Grids follow one another, each in raster order, levels fastest.
    """

    grids: tuple[tuple[int, ...], ...]
    """the grids, coarse first: `(h, w)`, or `(T,)` for a one-dimensional tokenizer"""
    levels: int = 1
    """codes at one position (residual and product quantizers)"""
    sizes: tuple[int, ...] = ()
    """number of codes of each stream = grid x level, grid-major"""

    def __post_init__(self) -> None:
        grids = tuple(_numbers(grid, "grids") for grid in _listed(self.grids, "grids"))
        object.__setattr__(self, "grids", grids)
        object.__setattr__(self, "levels", _number(self.levels, "levels"))
        object.__setattr__(self, "sizes", _numbers(self.sizes, "sizes"))
        if not grids or any(len(grid) not in (1, 2) or min(grid) < 1 for grid in grids):
            raise ValueError(f"grids must be (h, w) or (T,) of positive sizes, got {reprlib.repr(grids)}")
        if self.levels < 1 or len(self.sizes) != len(grids) * self.levels:
            raise ValueError(
                f"{len(grids)} grids x {self.levels} levels need {len(grids) * self.levels} sizes, "
                f"got {len(self.sizes)}"
            )
        if min(self.sizes) < 1 or max(self.sizes) > 2**63:
            raise ValueError(f"sizes must be 1 to 2**63, for codes are int64, got {reprlib.repr(self.sizes)}")
        if self.length > LONGEST:
            raise ValueError(f"a layout holds at most {LONGEST:,} tokens an image, got {self.length:,}")

    @property
    def length(self) -> int:
        """Tokens of one image."""
        return self.levels * sum(math.prod(grid) for grid in self.grids)

    @property
    def bits(self) -> float:
        """Bits of one image at log2(K) a code."""
        streams = [math.prod(grid) for grid in self.grids for _ in range(self.levels)]
        return sum(count * math.log2(size) for count, size in zip(streams, self.sizes, strict=True))

    def flatten(self, codes: Codes) -> Tensor:
        """Codes -> int64 `(B, N)`. Raises `ValueError` where their shape is not this layout's, or no integers."""
        parts = whole_numbers(codes)
        parts = parts if isinstance(parts, tuple) else (parts,)
        wanted = [grid if self.levels == 1 else (*grid, self.levels) for grid in self.grids]
        got = [tuple(part.shape[1:]) for part in parts]
        if got != wanted or len({part.shape[0] for part in parts}) > 1:
            shapes = [tuple(part.shape) for part in parts]
            raise ValueError(f"codes of shape {shapes} do not fit this layout, which needs (B, {wanted})")
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    def unflatten(self, tokens: Tensor) -> Codes:
        """Integer `(B, N)` -> int64 codes, the inverse of `flatten`. Raises `ValueError` for another length or kind."""
        shape = tuple(getattr(tokens, "shape", ()))
        if len(shape) != 2 or shape[1] != self.length:
            raise ValueError(f"tokens must be (B, {self.length}) for this layout, got {shape or type(tokens).__name__}")
        rows = whole_numbers(tokens)
        assert isinstance(rows, Tensor)
        counts = [math.prod(grid) * self.levels for grid in self.grids]
        tail = () if self.levels == 1 else (self.levels,)
        parts = tuple(
            part.reshape(shape[0], *grid, *tail) for part, grid in zip(rows.split(counts, 1), self.grids, strict=True)
        )
        return parts if len(parts) > 1 else parts[0]

    def positions(self) -> Tensor:
        """int64 `(N, 4)`: grid, row, column and level of every token (row 0 for one-dimensional grids)."""
        rows = []
        for index, grid in enumerate(self.grids):
            height, width = grid if len(grid) == 2 else (1, grid[0])
            axes = (torch.tensor([index]), torch.arange(height), torch.arange(width), torch.arange(self.levels))
            rows.append(torch.cartesian_prod(*axes))
        return torch.cat(rows)

    def streams(self) -> Tensor:
        """int64 `(N,)`: the stream (grid x level) of every token; `sizes[stream]` is its number of codes."""
        streams = torch.arange(len(self.sizes)).view(-1, self.levels)
        return torch.cat([row.repeat(math.prod(grid)) for row, grid in zip(streams, self.grids, strict=True)])

    @property
    def steps(self) -> int:
        """What `prefix` counts: grids where there are several, else levels, else codes of a row; 0 on one grid."""
        if len(self.grids) > 1 or self.levels > 1:
            return len(self.grids) if len(self.grids) > 1 else self.levels
        return self.grids[0][0] if len(self.grids[0]) == 1 else 0

    def prefix(self, kept: int) -> CodeLayout:
        """The layout of an image's first codes: the first grids, or levels, or codes of a row (see `steps`).

        Raises `ValueError` for another number, and where codes have no order from coarse to fine.
        """
        if not self.steps:
            raise ValueError("codes on one grid have no first ones that stand for an image: decode them whole")
        if not isinstance(kept, int) or not 1 <= kept <= self.steps:
            raise ValueError(f"a prefix of this layout keeps 1 to {self.steps}, got {kept!r}")
        if len(self.grids) > 1:
            return self.part(list(range(kept)))
        if self.levels > 1:
            return CodeLayout(self.grids, kept, self.sizes[:kept])
        return CodeLayout(((kept,),), 1, self.sizes)

    def cut(self, codes: Codes, kept: int) -> Codes:
        """Codes of this layout -> those of `prefix(kept)`. Raises `ValueError` as it does, and as `flatten`."""
        self.prefix(kept)
        self.flatten(codes)
        if isinstance(codes, tuple):
            return codes[:kept] if kept > 1 else codes[0]
        if self.levels > 1:
            return codes[..., :kept] if kept > 1 else codes[..., 0]
        return codes[:, :kept]

    def part(self, grids: Sequence[int]) -> CodeLayout:
        """The layout of some grids alone, by their numbers, which rise. Raises `ValueError` for others."""
        numbers = _numbers(grids, "grids")
        if list(numbers) != sorted(set(numbers)) or not numbers or not 0 <= numbers[0] <= numbers[-1] < len(self.grids):
            raise ValueError(
                f"no part {list(numbers)} of {len(self.grids)} grids: give their numbers, 0 to {len(self.grids) - 1}, "
                "each once and rising"
            )
        sizes = [self.sizes[number * self.levels + level] for number in numbers for level in range(self.levels)]
        return CodeLayout(tuple(self.grids[number] for number in numbers), self.levels, tuple(sizes))

    def places_of(self, grids: Sequence[int]) -> list[int]:
        """The places of some grids' tokens among all."""
        ends = list(accumulate(math.prod(grid) * self.levels for grid in self.grids))
        return [place for number in grids for place in range(ends[number - 1] if number else 0, ends[number])]

    def split(self, codes: Codes) -> list[Tensor]:
        """One `(B, n)` row per stream, in the order of `sizes`."""
        tokens, streams = self.flatten(codes), self.streams()
        return [tokens[:, (streams == stream).to(tokens.device)] for stream in range(len(self.sizes))]

    def _repr_html_(self) -> str:
        """In a notebook: the grids, drawn, and what one image's codes come to."""
        sides = [grid if len(grid) == 2 else (1, grid[0]) for grid in self.grids]
        largest = max(max(side) for side in sides)
        drawn = "".join(notebooks.grid(*side, side=max(12, 120 * max(side) // largest)) for side in sides[-12:])
        sizes = " / ".join(f"{size:,}" for size in dict.fromkeys(self.sizes))
        rows = [
            ("grids", " + ".join("x".join(map(str, grid)) for grid in self.grids)),
            ("levels", self.levels),
            ("codes of an image", f"{self.length:,}"),
            ("codebook", f"{sizes} codes"),
            ("bits of an image", f"{self.bits:,.0f}"),
        ]
        return f"<div>{drawn}{notebooks.table(rows, 'CodeLayout')}</div>"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, kept beside saved codes."""
        return {"grids": [list(grid) for grid in self.grids], "levels": self.levels, "sizes": list(self.sizes)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CodeLayout:
        """Inverse of `to_dict`. Raises `ValueError` for anything else."""
        if not isinstance(data, Mapping):
            raise ValueError(f"a layout has grids, levels and sizes, got {reprlib.repr(data)}")
        if missing := [name for name in ("grids", "levels", "sizes") if name not in data]:
            raise ValueError(f"a layout has grids, levels and sizes; {missing[0]} is missing")
        return cls(data["grids"], data["levels"], data["sizes"])


def whole_numbers(codes: Any) -> Codes:
    """Codes as int64 tensors, from integers of any width, NumPy's too: shards hold uint16.

    Raises `ValueError` for other types, floats and booleans among them, which would decode to something else.
    """
    if isinstance(codes, (tuple, list)):
        return tuple(_whole(part) for part in codes)
    return _whole(codes)


def _whole(part: Any) -> Tensor:
    if isinstance(part, np.ndarray) and part.dtype.kind in "iu":
        part = torch.from_numpy(part.astype(np.int64))
    if not isinstance(part, Tensor):
        kind = f"an array of {part.dtype}" if isinstance(part, np.ndarray) else type(part).__name__
        raise ValueError(
            f"codes must be integer tensors, as `encode` gives them, got {kind}; convert with torch.as_tensor(codes)"
        )
    if part.is_floating_point() or part.is_complex() or part.dtype == torch.bool:
        raise ValueError(f"codes must be int64, got {part.dtype}; convert with .long() if they are whole numbers")
    return part.to(torch.int64)


def _listed(value: Any, name: str) -> Iterable[Any]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name} must be a list, got {reprlib.repr(value)}")
    return value


def _numbers(value: Any, name: str) -> tuple[int, ...]:
    return tuple(_number(item, name) for item in _listed(value, name))


def _number(value: Any, name: str) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be whole numbers, got {reprlib.repr(value)}") from None


def nearest_multiples(size: int, stride: int) -> Sequence[int]:
    """The positive multiples of `stride` around `size`, for error messages: one where it is a multiple itself."""
    low = size // stride * stride
    return [size] if low == size > 0 else [n for n in (low, low + stride) if n > 0]
