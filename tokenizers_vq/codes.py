"""Results of the tokenizer's parts, and `CodeLayout`: how an image's codes lie in one flat row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Codes = Tensor | tuple[Tensor, ...]
"""int64 codes: `(B, *grid)` or `(B, *grid, L)`; a tuple, coarse first, if and only if there are several grids."""


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
        object.__setattr__(self, "grids", tuple(tuple(int(n) for n in grid) for grid in self.grids))
        object.__setattr__(self, "sizes", tuple(int(size) for size in self.sizes))
        if not self.grids or any(len(grid) not in (1, 2) or min(grid) < 1 for grid in self.grids):
            raise ValueError(f"grids must be (h, w) or (T,) of positive sizes, got {self.grids}")
        if self.levels < 1 or len(self.sizes) != len(self.grids) * self.levels:
            raise ValueError(
                f"{len(self.grids)} grids x {self.levels} levels need {len(self.grids) * self.levels} sizes, "
                f"got {len(self.sizes)}"
            )

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
        """Codes -> int64 `(B, N)`. Raises `ValueError` where their shape is not this layout's."""
        parts = codes if isinstance(codes, (tuple, list)) else (codes,)
        wanted = [grid if self.levels == 1 else (*grid, self.levels) for grid in self.grids]
        got = [tuple(part.shape[1:]) for part in parts]
        if got != wanted:
            raise ValueError(f"codes of shape (B, {got}) do not fit this layout, which needs (B, {wanted})")
        return torch.cat([part.reshape(part.shape[0], -1) for part in parts], dim=1)

    def unflatten(self, tokens: Tensor) -> Codes:
        """`(B, N)` -> codes, the inverse of `flatten`. Raises `ValueError` for another length."""
        if tokens.ndim != 2 or tokens.shape[1] != self.length:
            raise ValueError(f"tokens must be (B, {self.length}) for this layout, got {tuple(tokens.shape)}")
        counts = [math.prod(grid) * self.levels for grid in self.grids]
        tail = () if self.levels == 1 else (self.levels,)
        parts = tuple(
            part.reshape(-1, *grid, *tail) for part, grid in zip(tokens.split(counts, dim=1), self.grids, strict=True)
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
        positions = self.positions()
        return positions[:, 0] * self.levels + positions[:, 3]

    def split(self, codes: Codes) -> list[Tensor]:
        """One `(B, n)` row per stream, in the order of `sizes`."""
        tokens, streams = self.flatten(codes), self.streams()
        return [tokens[:, (streams == stream).to(tokens.device)] for stream in range(len(self.sizes))]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, kept beside saved codes."""
        return {"grids": [list(grid) for grid in self.grids], "levels": self.levels, "sizes": list(self.sizes)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CodeLayout:
        """Inverse of `to_dict`."""
        return cls(tuple(tuple(grid) for grid in data["grids"]), data["levels"], tuple(data["sizes"]))


def nearest_multiples(size: int, stride: int) -> Sequence[int]:
    """The positive multiples of `stride` around `size`, for error messages: one where it is a multiple itself."""
    low = size // stride * stride
    return [size] if low == size > 0 else [n for n in (low, low + stride) if n > 0]
