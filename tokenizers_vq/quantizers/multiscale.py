"""Multi-scale residual quantization of VAR (arXiv 2404.02905, algorithms 1 and 2): a token map at every scale.

Infinity's form (arXiv 2412.04431) has BSQ as its book, no phi, bilinear enlarging, and normalises each scale by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from tokenizers_vq.codes import CodeLayout, Codes, Quantized
from tokenizers_vq.config import Blocks, ConfigError
from tokenizers_vq.quantizers.base import Quantizer, as_stored, check_features, straight_through
from tokenizers_vq.quantizers.books import (
    MOST,
    BookedQuantizer,
    BooksConfig,
    mean_losses,
    move_into_book,
    moved_back,
    quantizers_in,
)
from tokenizers_vq.quantizers.schedules import infinity_scales, stretched
from tokenizers_vq.quantizers.statistics import joined_stats

Side = Annotated[int, Field(ge=1, le=4096)]
Scales = Annotated[tuple[Side | tuple[Side, Side], ...], Field(min_length=1, max_length=MOST)]
_OLDER = {"num_codes": 4096, "dim": 32}
"""fields of the one codebook, where a config of before there were books left them out"""


class MultiscaleQuantizerConfig(BooksConfig):
    """A grid of codes at every scale, all of one book, or of one each."""

    kind: Literal["multiscale"] = "multiscale"
    scales: Scales = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    """grids, coarse first: a side, or height and width; the last one is the grid of the features"""
    phis: Blocks = 4
    """convolutions behind the upsampling, spread over the scales; 0 = none, the number of scales = one each"""
    phi_ratio: float = Field(default=0.5, ge=0, le=1)
    """share of the convolution in phi(h) = (1 - ratio) h + ratio conv(h)"""
    enlarging: Literal["bicubic", "bilinear"] = "bicubic"
    """how a scale's vectors are brought to the last grid; bilinear is Infinity's trilinear of a single frame"""
    confine: Literal["once", "each"] = "once"
    """what a book does with features first (BSQ's normalisation, FSQ's bound): once, in front of all scales, or for the
    residual of each scale, which then counts in what features are themselves (Infinity)"""
    schedule: Literal["stretched", "infinity"] = "stretched"
    """scales of images of other sizes: these, stretched, or Infinity's table, which has fifteen shapes in four sizes"""

    @model_validator(mode="before")
    @classmethod
    def _older(cls, data: Any) -> Any:
        scales = data.get("scales", ()) if isinstance(data, Mapping) else ()
        count = len(scales) if isinstance(scales, (list, tuple)) and scales else 10
        return move_into_book(data, count, "scales", _OLDER)

    @model_validator(mode="after")
    def _check(self) -> Self:
        *grids, (height, width) = self.grids
        if any(grid[0] > height or grid[1] > width for grid in grids):
            raise ConfigError(("scales",), f"the last must be the largest, {height}x{width} is not")
        self._check_books(as_wide_as_codes=True, one_code=False)
        return self

    def _count(self) -> tuple[int, str]:
        return len(self.scales), "scales"

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """The scales as heights and widths."""
        return tuple(scale if isinstance(scale, tuple) else (scale, scale) for scale in self.scales)

    def resized(self, grid: tuple[int, ...]) -> Self:
        """With the scales of another last grid, see `schedule`."""
        listed = infinity_scales(grid) if self.schedule == "infinity" else None
        scales = stretched(self.grids, grid) if listed is None else listed
        # As they are commonly written, for the fingerprint is taken of that.
        return self.replace(scales=tuple(height if height == width else (height, width) for height, width in scales))

    def described(self) -> dict[str, Any]:
        """As before there were books where that says it, so that fingerprints stay."""
        moved, given = None, super().described()
        if not isinstance(self.book, tuple):
            moved = moved_back(self.book, _OLDER)
        said = ("num_codes", "dim", "beta", "revive_after")
        if moved is None or not moved.keys() <= set(said):
            return given
        return {name: given[name] for name in given if name != "book"} | moved

    def build(self) -> MultiscaleQuantizer:
        """The quantizer."""
        return MultiscaleQuantizer(**self.arguments())


class MultiscaleQuantizer(BookedQuantizer):
    """Features `(B, D, h, w)` to a tuple of codes `(B, h_k, w_k)`, coarse first. Fields: `MultiscaleQuantizerConfig`.

    Scale k takes the codes of the residual's area average, adds phi_k of their vectors, enlarged, to the sum f_k, and
    the residual becomes z - f_k; the features are the last sum, straight-through. Scales of the last one's size are not
    resampled. A book of L codes at a position gives `(B, h_k, w_k, L)`.

    Losses, means over scales as VAR's, in place of the book's own: `codebook` = |sg[z] - f_k|^2, which trains codes and
    phi, and `commitment` = beta |z - sg[f_k]|^2, with the book's weights (`loss_weights`); a book's other terms
    (entropy, KL) stand beside them. z is what the book's `confine` makes of the features (FSQ's bound, BSQ's unit
    sphere); the books of all scales are of one size, which phi may change. Where a book has an estimator of its own,
    gradients pass through all scales, as in `ResidualQuantizer`.

    With `confine="each"` z is the features themselves, and every scale has the book's own losses (their means over
    scales) and estimator: the gradient of the features is the sum of what passes each scale's book, enlarging and area
    average; what a scale leaves over is cut off from its vectors.

    `perplexity` is the mean over scales; of one book for all, the other stats are those after its last update, one a
    scale, of several what `joined_stats` makes of them.
    """

    nested = True

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.config = config = MultiscaleQuantizerConfig(**fields)
        if isinstance(config.book, tuple):
            self.codebooks = config.build_books()
        else:
            self.codebook = config.book.build()
        self.in_dim = self.dim = self.books[0].dim
        self.depth = len(config.grids)
        self.straight = all(book.straight for book in self.books)
        self.phis = nn.ModuleList(nn.Conv2d(self.dim, self.dim, 3, padding=1) for _ in range(config.phis))
        self._phi_of_scale = phi_of_scale(len(config.grids), config.phis) if config.phis else []

    @property
    def books(self) -> list[Quantizer]:
        """The quantizer of each scale; one and the same where there is one for all."""
        if isinstance(self.config.book, tuple):
            return quantizers_in(self.codebooks)
        return [self.codebook] * len(self.config.grids)

    def layout(self, grid: tuple[int, ...]) -> CodeLayout:
        """One grid a scale. Raises `ValueError` for any grid but the last scale."""
        grids = self.config.grids
        if tuple(grid) != grids[-1]:
            got, wanted = ("x".join(map(str, sides)) for sides in (grid, grids[-1]))
            raise ValueError(
                f"the scales end in a grid of {wanted}, the features' is {got}: give images of the size that it was "
                "made for, or stretch the scales with tokenizer.resized(image_size)"
            )
        sizes = [size for book, grid in zip(self.books, grids, strict=True) for size in book.layout(grid).sizes]
        return CodeLayout(grids, self.books[0].depth, tuple(sizes))

    def encode(self, features: Tensor) -> Codes:
        """`(B, D, h, w)` -> int64 codes of each scale. Raises `ValueError` for other grids, non-finite features."""
        self.layout(features.shape[2:])
        check_features(features, in_all_processes=False)
        codes = []
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            each = self.config.confine == "each"
            residual = features.float() if each else self.books[0].confine(features.float())
            for scale, book in enumerate(self.books):
                shrunk = self._shrunk(residual, scale)
                codes.append(_one(book.encode(shrunk) if each else book.encode_confined(shrunk)))
                residual = residual - self._enlarged(book.lookup(codes[-1]), scale)
        return _as_codes(codes)

    def lookup(self, codes: Codes) -> Tensor:
        """int64 codes of each scale -> `(B, D, h, w)`. Raises `ValueError` for other grids and codes out of range."""
        parts = codes if isinstance(codes, (tuple, list)) else (codes,)
        if len(parts) != self.depth:
            got = [tuple(part.shape[1:]) for part in parts]
            raise ValueError(f"codes must be one (B, h, w) a scale, {self._shapes(self.depth)}, got {got}")
        return self._sum(parts)

    def partial(self, codes: Codes, upto: int) -> Tensor:
        """`(B, D, h, w)`, the sum of the first `upto` scales at the last one's size; see `Quantizer.partial`."""
        self._check_upto(upto)
        parts = codes if isinstance(codes, (tuple, list)) else (codes,)
        if not upto <= len(parts) <= self.depth:
            raise ValueError(f"codes must be of the first {upto} to {self.depth} scales, got {len(parts)}")
        return self._sum(parts[:upto])

    def addend(self, codes: Tensor, level: int) -> Tensor:
        """`(B, D, h, w)`, the last scale's size, of codes `(B, h_k, w_k)` of scale k; see `Quantizer.addend`."""
        with torch.autocast(codes.device.type, enabled=False):
            return self._enlarged(self.books[level].lookup(codes), level)

    def _sum(self, parts: Sequence[Tensor]) -> Tensor:
        wanted, got = self._shapes(len(parts)), [tuple(part.shape[1:]) for part in parts]
        if got != wanted:
            raise ValueError(f"codes must be one (B, h, w) a scale, {wanted}, got {got}")
        total: Tensor | None = None
        with torch.autocast(parts[0].device.type, enabled=False):
            for scale, (book, part) in enumerate(zip(self.books, parts, strict=False)):
                vectors = book.lookup(part)
                enlarged = self._enlarged(vectors, scale)
                total = enlarged if total is None else total + enlarged
        assert total is not None
        return total.to(vectors.dtype)

    def _shapes(self, upto: int) -> list[tuple[int, ...]]:
        """Of one image's codes of the first scales."""
        tail = () if self.books[0].depth == 1 else (self.books[0].depth,)
        return [(*grid, *tail) for grid in self.config.grids[:upto]]

    def forward(self, features: Tensor) -> Quantized:
        """`(B, D, h, w)` -> `Quantized`. Raises `ValueError` for other grids and non-finite features."""
        self.layout(features.shape[2:])
        check_features(features, in_all_processes=self.training)
        with torch.autocast(features.device.type, enabled=False):
            if self.config.confine == "each":
                found, quantized = self._each(features.float())
                losses = mean_losses([part.losses for part in found])
            else:
                z = self.books[0].confine(features.float())
                found, sums, total = self._straight(z) if self.straight else self._through(z)
                quantized = straight_through(total, z) if self.straight else total
                losses = self._losses(z, sums)
                inner = mean_losses([part.losses for part in found])
                losses |= {name: loss for name, loss in inner.items() if name not in ("commitment", "codebook")}
        stats = joined_stats([part.stats for part in found])
        if not isinstance(self.config.book, tuple):  # the last update's figures, not their sums
            stats |= {name: found[-1].stats[name] for name in ("usage", "dead", "oldest") if name in stats}
        codes = _as_codes([_one(part.codes) for part in found])
        return Quantized(as_stored(self, quantized, features), codes, losses, stats)

    def _straight(self, z: Tensor) -> tuple[list[Quantized], list[Tensor], Tensor]:
        """What the books give, the sums f_1, f_2, ..., and the last of them."""
        found: list[Quantized] = []
        sums: list[Tensor] = []
        residual = z
        for scale, book in enumerate(self.books):
            found.append(book.forward_confined(self._shrunk(residual, scale)))
            enlarged = self._enlarged(book.lookup(found[-1].codes), scale)
            sums.append(sums[-1] + enlarged if sums else enlarged)
            residual = residual - enlarged.detach()
        return found, sums, sums[-1]

    def _through(self, z: Tensor) -> tuple[list[Quantized], list[Tensor], Tensor]:
        """As `_straight`, but the last sum with the books' own estimators, one behind the other."""
        found: list[Quantized] = []
        sums: list[Tensor] = []
        total = torch.zeros_like(z)
        for scale, book in enumerate(self.books):
            found.append(book.forward_confined(self._shrunk(z - total, scale)))
            enlarged = self._enlarged(found[-1].features, scale)
            total = total + enlarged if scale else enlarged
            looked_up = self._enlarged(book.lookup(found[-1].codes), scale)
            sums.append(sums[-1] + looked_up if sums else looked_up)
        return found, sums, total

    def _each(self, z: Tensor) -> tuple[list[Quantized], Tensor]:
        """What the books give for the residuals as they are, and the sum with the books' own estimators."""
        found: list[Quantized] = []
        residual, total = z, torch.zeros_like(z)
        for scale, book in enumerate(self.books):
            found.append(book(self._shrunk(residual, scale)))
            enlarged = self._enlarged(found[-1].features, scale)
            total = total + enlarged if scale else enlarged
            residual = residual - enlarged.detach()
        return found, total + sum(0 * unused.sum() for unused in self._unused())

    def _losses(self, z: Tensor, sums: Sequence[Tensor]) -> dict[str, Tensor]:
        weights, losses = self.books[0].loss_weights, {}
        if weights.get("commitment"):
            errors = [F.mse_loss(z, total.detach()) for total in sums]
            losses["commitment"] = weights["commitment"] * torch.stack(errors).mean()
        if next(self.parameters(), None) is not None:
            errors = [F.mse_loss(total, z.detach()) for total in sums]
            codebook = torch.stack(errors).mean() + sum(0 * unused.sum() for unused in self._unused())
            losses["codebook"] = weights.get("codebook", 1.0) * codebook
        return losses

    def _shrunk(self, residual: Tensor, scale: int) -> Tensor:
        grids = self.config.grids
        return residual if grids[scale] == grids[-1] else F.interpolate(residual, size=grids[scale], mode="area")

    def _enlarged(self, vectors: Tensor, scale: int) -> Tensor:
        """phi of a scale's vectors, float32 `(B, D, h, w)`."""
        grids, ratio = self.config.grids, self.config.phi_ratio
        h = vectors.float()
        if grids[scale] != grids[-1]:
            h = F.interpolate(h, size=grids[-1], mode=self.config.enlarging)
        if not self.phis:
            return h
        weight, bias = self.phis[self._phi_of_scale[scale]].parameters()
        return h * (1 - ratio) + (_convolved(h, weight) + bias.float()[:, None, None]) * ratio

    def _unused(self) -> Iterator[Tensor]:
        """Parameters of phis that no scale takes: they get a gradient of zero, not none, which DDP refuses."""
        for index in set(range(len(self.phis))) - set(self._phi_of_scale):
            yield from self.phis[index].parameters()


def _convolved(h: Tensor, weight: Tensor) -> Tensor:
    """3x3 convolution, float32, as one float64 product (MPS has none).

    torch's own rounds as the size of the batch has it, and the rounding of one scale moves codes of the next.
    """
    wide = torch.float32 if h.device.type == "mps" else torch.float64
    height, width = h.shape[2:]
    padded = F.pad(h, (1, 1, 1, 1))
    taps = [padded[..., row : row + height, column : column + width] for row in range(3) for column in range(3)]
    product = weight.permute(0, 2, 3, 1).flatten(1).to(wide) @ torch.cat(taps, dim=1).flatten(2).to(wide)
    return product.float().unflatten(2, (height, width))


def phi_of_scale(scales: int, phis: int) -> list[int]:
    """Which phi each scale takes: the one whose tick is nearest to k / (scales - 1), as the reference rounds.

    The ticks are the middles of equal parts of [0, 1]; but of 4 they lie at 1/12 to 11/12.
    """
    margin = 1 / 3 / phis if phis == 4 else 1 / 2 / phis
    ticks = np.linspace(margin, 1 - margin, phis)
    places = [scale / (scales - 1) if scales > 1 else 0.0 for scale in range(scales)]
    return [int(np.argmin(np.abs(ticks - place))) for place in places]


def _one(codes: Codes) -> Tensor:
    assert isinstance(codes, Tensor)
    return codes


def _as_codes(codes: list[Tensor]) -> Codes:
    return tuple(codes) if len(codes) > 1 else codes[0]
