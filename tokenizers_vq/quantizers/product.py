"""Product quantization: channels in groups, each with a codebook of its own (Jegou et al., PAMI 2011, section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from tokenizers_vq.codes import CodeLayout, Quantized
from tokenizers_vq.config import ConfigError
from tokenizers_vq.quantizers.base import Quantizer, join_levels, split_levels
from tokenizers_vq.quantizers.books import (
    MOST,
    BookedQuantizer,
    BooksConfig,
    mean_losses,
    move_into_book,
    moved_back,
    quantizers_in,
)
from tokenizers_vq.quantizers.statistics import joined_stats


class ProductQuantizerConfig(BooksConfig):
    """Several codes at every position, one for each group of channels."""

    kind: Literal["product"] = "product"
    groups: int = Field(default=2, ge=1, le=MOST)
    """groups of channels, as wide as their books, and codes at one position"""

    @model_validator(mode="before")
    @classmethod
    def _older(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        given = data.get("groups", 2)
        groups = given if isinstance(given, int) and given >= 1 else 1
        dim = data.get("dim", None if "book" in data else 256)
        if isinstance(dim, int):  # of all groups together
            if dim % groups or dim < groups:
                raise ConfigError(("groups",), f"{groups} groups do not divide the width {dim}")
            data = {**data, "dim": dim // groups}
        return move_into_book(data, groups, "groups", {})

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_books(as_wide_as_codes=False)
        return self

    def _count(self) -> tuple[int, str]:
        return self.groups, "groups"

    def described(self) -> dict[str, Any]:
        """As before there were books where that says it, so that fingerprints stay."""
        moved, given = moved_back(self.book, {"dim": 0}), super().described()
        if moved is None:
            return given
        dim = moved.pop("dim") * self.groups
        rest = {name: given[name] for name in given if name != "book"}
        return rest | moved | ({} if dim == 256 else {"dim": dim})

    def build(self) -> ProductQuantizer:
        """The quantizer."""
        return ProductQuantizer(**self.arguments())


class ProductQuantizer(BookedQuantizer):
    """Features `(B, D, *grid)` to a code for each of G groups of channels, `(B, *grid, G)`.

    Fields: `ProductQuantizerConfig`. Each group is as wide as its book, whose estimator it has; losses are the means
    over groups. With one group codes are `(B, *grid)`. Stats: means over groups, `dead` their sum, `oldest` the
    largest.
    """

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.config = config = ProductQuantizerConfig(**fields)
        self.groups = config.build_books()
        self.in_dim = sum(group.in_dim for group in self._groups)
        self.dim = sum(group.dim for group in self._groups)
        self.depth = config.groups

    def layout(self, grid: tuple[int, ...]) -> CodeLayout:
        """G codes at every position of `grid`."""
        sizes = [size for group in self._groups for size in group.layout(grid).sizes]
        return CodeLayout((grid,), self.config.groups, tuple(sizes))

    def encode(self, features: Tensor) -> Tensor:
        """`(B, D, *grid)` -> int64 `(B, *grid, G)`. Raises `ValueError` for non-finite features."""
        codes = [group.encode(part) for group, part in self._parts(features)]
        return join_levels([part for part in codes if isinstance(part, Tensor)])

    def lookup(self, codes: Tensor) -> Tensor:
        """int64 `(B, *grid, G)` -> `(B, D, *grid)`. Raises `ValueError` for other G and codes out of range."""
        return torch.cat(self._vectors(split_levels(codes, self.config.groups)), dim=1)

    def partial(self, codes: Tensor, upto: int) -> Tensor:
        """`(B, D, *grid)`, zero in the channels behind the first `upto` groups; see `Quantizer.partial`."""
        self._check_upto(upto)
        if self.config.groups == 1:
            return self.lookup(codes)
        if not upto <= codes.shape[-1] <= self.config.groups:
            raise ValueError(f"codes must have {upto} to {self.config.groups} groups last, got {tuple(codes.shape)}")
        known = self._vectors(codes.unbind(-1)[:upto])
        shape = known[0].shape
        rest = [known[0].new_zeros(shape[0], group.dim, *shape[2:]) for group in self._groups[upto:]]
        return torch.cat([*known, *rest], dim=1)

    def addend(self, codes: Tensor, level: int) -> Tensor:
        """`(B, D, *grid)` of codes `(B, *grid)` of a group, zero in the channels of others; see `Quantizer.addend`."""
        vectors = self._groups[level].lookup(codes).float()
        shape = vectors.shape
        widths = [group.dim for group in self._groups]
        before, after = sum(widths[:level]), sum(widths[level + 1 :])
        parts = [vectors.new_zeros(shape[0], width, *shape[2:]) for width in (before, after)]
        return torch.cat((parts[0], vectors, parts[1]), dim=1)

    def _vectors(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [group.lookup(part) for group, part in zip(self._groups, parts, strict=False)]

    def forward(self, features: Tensor) -> Quantized:
        """`(B, D, *grid)` -> `Quantized`. Raises as `VectorQuantizer`."""
        results = [group(part) for group, part in self._parts(features)]
        return Quantized(
            torch.cat([result.features for result in results], dim=1),
            join_levels([result.codes for result in results]),
            mean_losses([result.losses for result in results]),
            joined_stats([result.stats for result in results]),
        )

    @property
    def _groups(self) -> list[Quantizer]:
        return quantizers_in(self.groups)

    def _parts(self, features: Tensor) -> list[tuple[Quantizer, Tensor]]:
        widths = [group.in_dim for group in self._groups]
        return list(zip(self._groups, features.split(widths, dim=1), strict=True))
