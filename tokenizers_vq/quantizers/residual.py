"""Residual quantization: each level quantizes what the levels before left over (arXiv 2107.03312, 2203.01941)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from tokenizers_vq.codes import CodeLayout, Quantized
from tokenizers_vq.config import ConfigError
from tokenizers_vq.devices import constant
from tokenizers_vq.quantizers.base import (
    Quantizer,
    as_stored,
    check_features,
    join_levels,
    split_levels,
    straight_through,
)
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


class ResidualQuantizerConfig(BooksConfig):
    """Several codes at every position, coarse to fine, whose vectors add up."""

    kind: Literal["residual"] = "residual"
    levels: int = Field(default=4, ge=1, le=MOST)
    """codes at one position"""
    shared: bool = False
    """one book for all levels (RQ-VAE); each level is then an update of it"""
    dropout: float = Field(default=0.0, ge=0, le=1)
    """share of the training images that reach the decoder without their last levels, how many is drawn evenly"""

    @model_validator(mode="before")
    @classmethod
    def _older(cls, data: Any) -> Any:
        moved = move_into_book(data, _levels_of(data), "levels", {}, through_norm=False)
        sizes = data.get("num_codes") if isinstance(data, Mapping) else None
        if isinstance(sizes, (list, tuple)) and data.get("shared") and len(set(sizes)) > 1:
            raise ConfigError(("num_codes",), "a shared codebook has one size: give one number")
        return moved

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_books(as_wide_as_codes=True)
        if self.shared and len(set(self.books)) > 1:
            raise ConfigError(("book",), "a shared book is one: give one config")
        if self.dropout and self.levels == 1:
            raise ConfigError(("dropout",), "needs at least 2 levels to drop one")
        return self

    def _count(self) -> tuple[int, str]:
        return self.levels, "levels"

    def described(self) -> dict[str, Any]:
        """As before there were books where that says it, so that fingerprints stay."""
        moved, given = moved_back(self.book, {}, through_norm=False), super().described()
        return given if moved is None else {name: given[name] for name in given if name != "book"} | moved

    def build(self) -> ResidualQuantizer:
        """The quantizer."""
        return ResidualQuantizer(**self.arguments())


def _levels_of(data: Any) -> int:
    levels = data.get("levels", 4) if isinstance(data, Mapping) else 4
    return levels if isinstance(levels, int) else 1


class ResidualQuantizer(BookedQuantizer):
    """Features `(B, D, *grid)` to L codes at each position, `(B, *grid, L)`. Fields: `ResidualQuantizerConfig`.

    r_0 = z; level l takes the vector e_l of its book for r_{l-1}, and r_l = r_{l-1} - e_l; the features are the sum of
    all e_l (arXiv 2203.01941, eq. 2), straight-through. Losses are the means over levels of the books': of a euclidean
    `VectorQuantizer` beta |z - sg[e_1 + ... + e_l]|^2 (eq. 8 there), and |sg[r_{l-1}] - e_l|^2 for a gradient codebook.
    With one level codes are `(B, *grid)`.

    Books without a codebook of their own size are scaled: e_l = s_l q_l(r_{l-1} / s_l), s_l the product of `finer` of
    the books before (ResidualFSQ and ResidualLFQ of vector-quantize-pytorch: (L - 1)^-(l-1) of FSQ's L levels a
    channel, 2^-(l-1)), and z is what the first book's `confine` makes of the features (FSQ's bound, BSQ's unit sphere).
    Where a book has an estimator of its own (Gumbel, IBQ, the rotation trick), gradients pass through all levels: r_l
    is not cut off from e_l, and straight-through books pass the identity on.

    `dropout` cuts the sum alone: all levels keep learning from all images, and codes are always whole. Stats:
    `perplexity` and `usage` are means over levels, `dead` their sum, `oldest` the largest; of a shared book the
    last three are those of its last update.
    """

    nested = True

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.config = config = ResidualQuantizerConfig(**fields)
        self.codebooks = config.build_books(config.shared)
        self.in_dim = self.dim = self.levels[0].dim
        self.depth = config.levels
        self.straight = all(level.straight for level in self.levels)

    @property
    def levels(self) -> list[Quantizer]:
        """The quantizer of each level; one and the same where the book is shared."""
        books = quantizers_in(self.codebooks)
        return books * self.config.levels if self.config.shared else books

    def layout(self, grid: tuple[int, ...]) -> CodeLayout:
        """L codes at every position of `grid`."""
        sizes = [size for level in self.levels for size in level.layout(grid).sizes]
        return CodeLayout((grid,), self.config.levels, tuple(sizes))

    def encode(self, features: Tensor) -> Tensor:
        """`(B, D, *grid)` -> int64 `(B, *grid, L)`. Raises `ValueError` for non-finite features."""
        check_features(features, in_all_processes=False)
        codes: list[Tensor] = []
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            residual = self.levels[0].confine(features.detach().float())
            for number, level in enumerate(self.levels):
                found = level.encode_confined(self._scaled(residual, number))
                assert isinstance(found, Tensor)
                codes.append(found)
                residual = residual - self._unscaled(level.lookup(found), number)
        return join_levels(codes)

    def lookup(self, codes: Tensor) -> Tensor:
        """int64 `(B, *grid, L)` -> `(B, D, *grid)`. Raises `ValueError` for other L and codes out of range."""
        return self._sum(split_levels(codes, self.config.levels))

    def partial(self, codes: Tensor, upto: int) -> Tensor:
        """`(B, D, *grid)`, the sum of the first `upto` levels; see `Quantizer.partial`."""
        self._check_upto(upto)
        if self.config.levels == 1:
            return self.lookup(codes)
        if not upto <= codes.shape[-1] <= self.config.levels:
            raise ValueError(f"codes must have {upto} to {self.config.levels} levels last, got {tuple(codes.shape)}")
        return self._sum(codes.unbind(-1)[:upto])

    def addend(self, codes: Tensor, level: int) -> Tensor:
        """`(B, D, *grid)` of codes `(B, *grid)` of a level; see `Quantizer.addend`."""
        return self._unscaled(self.levels[level].lookup(codes), level)

    def _sum(self, parts: Sequence[Tensor]) -> Tensor:
        vectors = [level.lookup(part) for level, part in zip(self.levels, parts, strict=False)]
        return _partial_sums([self._unscaled(vector, i) for i, vector in enumerate(vectors)])[-1].to(vectors[0].dtype)

    def forward(self, features: Tensor) -> Quantized:
        """`(B, D, *grid)` -> `Quantized`. Raises as `VectorQuantizer`."""
        check_features(features, in_all_processes=self.training)
        with torch.autocast(features.device.type, enabled=False):
            residual = z = self.levels[0].confine(features.float())
            results, vectors = [], []
            for number, level in enumerate(self.levels):
                results.append(level.forward_confined(self._scaled(residual, number)))
                vector = self._unscaled(results[-1].features, number)
                vectors.append(vector.detach() if self.straight else vector)
                residual = residual - vectors[-1]
            sums = _partial_sums(vectors)
            total = _cut(sums, self.config.dropout) if self.training and self.config.dropout else sums[-1]
            quantized = straight_through(total, z) if self.straight else total
        stats = joined_stats([result.stats for result in results])
        if self.config.shared:  # one book: the last update's figures, not their sums
            stats |= {name: results[-1].stats[name] for name in ("usage", "dead", "oldest") if name in stats}
        losses = mean_losses([result.losses for result in results])
        return Quantized(as_stored(self, quantized, features), join_levels([r.codes for r in results]), losses, stats)

    def _scaled(self, residual: Tensor, number: int) -> Tensor:
        """What level `number` (0 = first) is given of the residual."""
        if (found := self._range(number, residual)) is None:
            return residual
        scale, centre = found
        return residual / scale + centre

    def _unscaled(self, vectors: Tensor, number: int) -> Tensor:
        """A level's vectors as they are added, float32."""
        if (found := self._range(number, vectors)) is None:
            return vectors.float()
        scale, centre = found
        return (vectors.float() - centre) * scale

    def _range(self, number: int, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """Scale and centre of a level, broadcast over `(B, D, *grid)`; None for a level whose book has its own size."""
        before, level = self.levels[:number], self.levels[number]
        if not number or all(book.finer == 1.0 for book in before):
            return None
        shape = (-1,) + (1,) * (like.ndim - 2)
        scale = torch.ones(self.dim, device=like.device)
        for book in before:
            scale = scale * constant(book.finer, like.device)
        centre = constant(level.centre, like.device).expand(self.dim)
        return scale.view(shape), centre.view(shape)


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
