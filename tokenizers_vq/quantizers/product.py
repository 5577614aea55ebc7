"""Product quantization: channels in groups, each with a codebook of its own (Jegou et al., PAMI 2011, section 2.2)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from tokenizers_vq.codes import CodeLayout, Quantized
from tokenizers_vq.config import ConfigError
from tokenizers_vq.quantizers.base import Quantizer, join_levels, split_levels
from tokenizers_vq.quantizers.books import BooksConfig
from tokenizers_vq.quantizers.statistics import joined_stats
from tokenizers_vq.quantizers.vector import VectorQuantizer


class ProductQuantizerConfig(BooksConfig):
    """Several codes at every position, one for each group of channels."""

    kind: Literal["product"] = "product"
    groups: int = Field(default=2, ge=1)
    """groups of channels, and codes at one position"""
    dim: int = Field(default=256, ge=1)
    """width of the features; each group has its equal share"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dim % self.groups:
            raise ConfigError(("groups",), f"{self.groups} groups do not divide the width {self.dim}")
        self.sizes_of(self.groups, "groups")
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each group."""
        return self.sizes_of(self.groups, "groups")

    def build(self) -> ProductQuantizer:
        """The quantizer."""
        return ProductQuantizer(**self.arguments())


class ProductQuantizer(Quantizer):
    """Features `(B, D, *grid)` to a code for each group of D / G channels, `(B, *grid, G)`.

    Fields: `ProductQuantizerConfig`. Each group is a `VectorQuantizer`, its estimator too; losses are the means over
    groups. With one group codes are `(B, *grid)`. Stats: means over groups, `dead` their sum, `oldest` the largest.
    """

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.config = config = ProductQuantizerConfig(**fields)
        self.in_dim = self.dim = config.dim
        self.groups = nn.ModuleList(
            VectorQuantizer(num_codes=size, dim=config.dim // config.groups, **config.book()) for size in config.sizes
        )

    def layout(self, grid: tuple[int, ...]) -> CodeLayout:
        """G codes at every position of `grid`."""
        return CodeLayout((grid,), self.config.groups, self.config.sizes)

    def encode(self, features: Tensor) -> Tensor:
        """`(B, D, *grid)` -> int64 `(B, *grid, G)`. Raises `ValueError` for non-finite features."""
        return join_levels([group.encode(part) for group, part in self._parts(features)])

    def lookup(self, codes: Tensor) -> Tensor:
        """int64 `(B, *grid, G)` -> `(B, D, *grid)`. Raises `ValueError` for other G and codes out of range."""
        parts = split_levels(codes, self.config.groups)
        return torch.cat([group.lookup(part) for group, part in zip(self._groups, parts, strict=True)], dim=1)

    def forward(self, features: Tensor) -> Quantized:
        """`(B, D, *grid)` -> `Quantized`. Raises as `VectorQuantizer`."""
        results = [group(part) for group, part in self._parts(features)]
        names = results[0].losses
        return Quantized(
            torch.cat([result.features for result in results], dim=1),
            join_levels([result.codes for result in results]),
            {name: torch.stack([result.losses[name] for result in results]).mean() for name in names},
            joined_stats([result.stats for result in results]),
        )

    @property
    def _groups(self) -> list[VectorQuantizer]:
        return [group for group in self.groups if isinstance(group, VectorQuantizer)]

    def _parts(self, features: Tensor) -> list[tuple[VectorQuantizer, Tensor]]:
        return list(zip(self._groups, features.chunk(self.config.groups, dim=1), strict=True))
