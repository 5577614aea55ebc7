"""Residual quantization: each level quantizes what the levels before left over (arXiv 2107.03312, 2203.01941)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from tokenizers_vq.codes import CodeLayout, Quantized
from tokenizers_vq.config import ConfigError
from tokenizers_vq.quantizers.base import Quantizer, join_levels, split_levels, straight_through
from tokenizers_vq.quantizers.books import BooksConfig
from tokenizers_vq.quantizers.statistics import joined_stats
from tokenizers_vq.quantizers.vector import VectorQuantizer


class ResidualQuantizerConfig(BooksConfig):
    """Several codes at every position, coarse to fine, whose vectors add up."""

    kind: Literal["residual"] = "residual"
    levels: int = Field(default=4, ge=1)
    """codes at one position"""
    dim: int = Field(default=256, ge=1)
    """width of a code"""
    shared: bool = False
    """one codebook for all levels (RQ-VAE); each level is then an update of it"""
    dropout: float = Field(default=0.0, ge=0, le=1)
    """share of the training images that reach the decoder without their last levels, how many is drawn evenly"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        sizes = self.sizes
        if self.shared and len(set(sizes)) > 1:
            raise ConfigError(("num_codes",), "a shared codebook has one size: give one number")
        if self.dropout and self.levels == 1:
            raise ConfigError(("dropout",), "needs at least 2 levels to drop one")
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each level."""
        return self.sizes_of(self.levels, "levels")

    def build(self) -> ResidualQuantizer:
        """The quantizer."""
        return ResidualQuantizer(**self.arguments())


class ResidualQuantizer(Quantizer):
    """Features `(B, D, *grid)` to L codes at each position, `(B, *grid, L)`. Fields: `ResidualQuantizerConfig`.

    r_0 = z; level l takes the code e_l nearest to r_{l-1}, and r_l = r_{l-1} - e_l; the features are the sum of all
    e_l (arXiv 2203.01941, eq. 2), straight-through. Losses are the means over levels of `VectorQuantizer`'s: in the
    euclidean form beta |z - sg[e_1 + ... + e_l]|^2 (eq. 8 there), and |sg[r_{l-1}] - e_l|^2 for a gradient codebook.
    With one level codes are `(B, *grid)`.

    `dropout` cuts the sum alone: all levels keep learning from all images, and codes are always whole. Stats:
    `perplexity` and `usage` are means over levels, `dead` their sum, `oldest` the largest; of a shared codebook the
    last three are those of its last update.
    """

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.config = config = ResidualQuantizerConfig(**fields)
        self.in_dim = self.dim = config.dim
        sizes = config.sizes[:1] if config.shared else config.sizes
        self.codebooks = nn.ModuleList(
            VectorQuantizer(num_codes=size, dim=config.dim, gradient_through_norm=False, **config.book())
            for size in sizes
        )

    @property
    def levels(self) -> list[VectorQuantizer]:
        """The quantizer of each level; one and the same where the codebook is shared."""
        books = [book for book in self.codebooks if isinstance(book, VectorQuantizer)]
        return books * self.config.levels if self.config.shared else books

    def layout(self, grid: tuple[int, ...]) -> CodeLayout:
        """L codes at every position of `grid`."""
        return CodeLayout((grid,), self.config.levels, self.config.sizes)

    def encode(self, features: Tensor) -> Tensor:
        """`(B, D, *grid)` -> int64 `(B, *grid, L)`. Raises `ValueError` for non-finite features."""
        residual, codes = features.detach().float(), []
        for level in self.levels:
            codes.append(level.encode(residual))
            residual = residual - level.lookup(codes[-1]).float()
        return join_levels(codes)

    def lookup(self, codes: Tensor) -> Tensor:
        """int64 `(B, *grid, L)` -> `(B, D, *grid)`. Raises `ValueError` for other L and codes out of range."""
        parts = split_levels(codes, self.config.levels)
        vectors = [level.lookup(part) for level, part in zip(self.levels, parts, strict=True)]
        return _partial_sums(vectors)[-1].to(vectors[0].dtype)

    def forward(self, features: Tensor) -> Quantized:
        """`(B, D, *grid)` -> `Quantized`. Raises as `VectorQuantizer`."""
        with torch.autocast(features.device.type, enabled=False):
            z = features.float()
            residual, results = z, []
            for level in self.levels:
                results.append(level(residual))
                residual = residual - results[-1].features.detach().float()
            sums = _partial_sums([result.features.detach() for result in results])
            total = sums[-1]
            if self.training and self.config.dropout:
                total = _cut(sums, self.config.dropout)
            quantized = straight_through(total, z).to(results[0].features.dtype)
        losses = {name: _mean([result.losses[name] for result in results]) for name in results[0].losses}
        stats = joined_stats([result.stats for result in results])
        if self.config.shared:  # one codebook: the last update's figures, not their sums
            stats |= {name: value for name, value in results[-1].stats.items() if name != "perplexity"}
        return Quantized(quantized, join_levels([result.codes for result in results]), losses, stats)


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def _partial_sums(vectors: Sequence[Tensor]) -> list[Tensor]:
    """float32 sums of the first 1, 2, ... L; always in this order, so that they are bitwise the same everywhere."""
    sums = [vectors[0].float()]
    for vector in vectors[1:]:
        sums.append(sums[-1] + vector.float())
    return sums


def _cut(sums: list[Tensor], share: float) -> Tensor:
    """For about `share` of the images the sum of the first 1 to L - 1 levels, for the others of all L."""
    stacked = torch.stack(sums)
    batch, last = stacked.shape[1], len(sums) - 1
    drawn = torch.randint(last, (batch,), device=stacked.device)
    kept = torch.where(torch.rand(batch, device=stacked.device) < share, drawn, last)
    return stacked[kept, torch.arange(batch, device=stacked.device)]
