"""The row of tokens that a prior models: layout, place and stream of every token, the codes each may take."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from tokenizers_vq import checks
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.config import Config, ConfigError

LARGEST = 2**16


class LayoutConfig(Config):
    """A `CodeLayout` as data."""

    grids: Annotated[tuple[tuple[int, ...], ...], Field(min_length=1)]
    """the grids, coarse first: [h, w], or [T]"""
    levels: int = 1
    """codes at one position"""
    sizes: tuple[int, ...]
    """number of codes of each stream = grid x level, grid-major"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            self.build()
        except ValueError as error:
            raise ConfigError((), str(error)) from None
        if max(self.sizes) > LARGEST:
            raise ConfigError(
                ("sizes",),
                f"a prior takes at most {LARGEST} codes a stream, got {max(self.sizes)}; use a smaller codebook",
            )
        if min(self.sizes) < 1:
            raise ConfigError(("sizes",), f"must be positive, got {list(self.sizes)}")
        return self

    @classmethod
    def of(cls, layout: CodeLayout) -> LayoutConfig:
        """The config of an existing layout."""
        return cls(grids=layout.grids, levels=layout.levels, sizes=layout.sizes)

    def build(self) -> CodeLayout:
        """The layout."""
        return CodeLayout(self.grids, self.levels, self.sizes)


class Sequence(nn.Module):
    """`N` tokens of one layout, in the order of `CodeLayout.flatten`. Holds no weights.

    `positions` int64 `(N, 4)` (grid, row, column, level), `streams` int64 `(N,)`.
    """

    positions: Tensor
    streams: Tensor
    impossible: Tensor
    bounds: Tensor

    def __init__(self, layout: CodeLayout) -> None:
        super().__init__()
        self.layout = layout
        self.vocabulary = max(layout.sizes)
        self.mixed = len(set(layout.sizes)) > 1
        self.register_buffer("positions", layout.positions(), persistent=False)
        self.register_buffer("streams", layout.streams(), persistent=False)
        sizes = torch.tensor(layout.sizes)
        self.register_buffer("impossible", torch.arange(self.vocabulary) >= sizes[:, None], persistent=False)
        self.register_buffer("bounds", sizes[layout.streams()], persistent=False)

    @property
    def length(self) -> int:
        """Tokens of one image."""
        return self.layout.length

    def check(self, tokens: Tensor, unknown: bool = False) -> None:
        """Raises `ValueError` unless `tokens` is int64 `(B, N)` of possible codes (`unknown`: -1 passes)."""
        if tokens.ndim != 2 or tokens.shape[1] != self.length or tokens.dtype != torch.int64:
            raise ValueError(
                f"tokens must be int64 (B, {self.length}) for grids {list(map(list, self.layout.grids))} x "
                f"{self.layout.levels} levels, got {str(tokens.dtype).removeprefix('torch.')} {tuple(tokens.shape)}"
            )
        if torch.compiler.is_compiling():
            return
        wrong = (tokens >= self.bounds) | (tokens < (-1 if unknown else 0))
        if wrong.any():
            row, place = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"token {place} of row {row} is {int(tokens[row, place])}, outside [0, {int(self.bounds[place])}): "
                "these codes come from another tokenizer"
            )

    def checked(self, tokens: Tensor) -> Tensor:
        """The tokens; raises as `check`, and where checks are noted gives possible codes in place of wrong ones."""
        if not checks.noting() or torch.compiler.is_compiling() or tokens.dtype != torch.int64:
            self.check(tokens)
            return tokens
        if tokens.shape[1:] != (self.length,):
            self.check(tokens)
        possible = torch.minimum(tokens.clamp(min=0), self.bounds - 1)
        checks.check((possible == tokens).all(), lambda: self.check(tokens))
        return possible

    def mask(self, logits: Tensor, first: int = 0) -> Tensor:
        """Logits `(B, n, K)` of tokens `first, first + 1, ...` with -inf at the codes that their streams lack."""
        if not self.mixed:
            return logits
        return logits.masked_fill(self.impossible[self.streams[first : first + logits.shape[1]]], float("-inf"))
