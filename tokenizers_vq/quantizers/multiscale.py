"""Multi-scale residual quantization of VAR (arXiv 2404.02905, algorithms 1 and 2): a token map at every scale."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from tokenizers_vq.codes import CodeLayout, Codes, Quantized
from tokenizers_vq.config import Config, ConfigError
from tokenizers_vq.quantizers.base import Quantizer, check_codes, straight_through
from tokenizers_vq.quantizers.vector import VectorQuantizer

Side = Annotated[int, Field(ge=1)]


class MultiscaleQuantizerConfig(Config):
    """A grid of codes at every scale, all of one codebook."""

    kind: Literal["multiscale"] = "multiscale"
    scales: Annotated[tuple[Side | tuple[Side, Side], ...], Field(min_length=1)] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    """grids, coarse first: a side, or height and width; the last one is the grid of the features"""
    num_codes: int = Field(default=4096, ge=1)
    """codes in the codebook"""
    dim: int = Field(default=32, ge=1)
    """width of a code"""
    phis: int = Field(default=4, ge=0)
    """convolutions behind the upsampling, spread over the scales; 0 = none, the number of scales = one each"""
    phi_ratio: float = Field(default=0.5, ge=0, le=1)
    """share of the convolution in phi(h) = (1 - ratio) h + ratio conv(h)"""
    beta: float = 0.25
    """weight of the commitment term"""
    revive_after: int | None = Field(default=None, ge=1)
    """a code unused for so many updates, one a scale, is moved to a random residual; null = never"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        *grids, (height, width) = self.grids
        if any(grid[0] > height or grid[1] > width for grid in grids):
            raise ConfigError(("scales",), f"the last must be the largest, {height}x{width} is not")
        return self

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """The scales as heights and widths."""
        return tuple(scale if isinstance(scale, tuple) else (scale, scale) for scale in self.scales)

    def build(self) -> MultiscaleQuantizer:
        """The quantizer."""
        return MultiscaleQuantizer(**self.arguments())


class MultiscaleQuantizer(Quantizer):
    """Features `(B, D, h, w)` to a tuple of codes `(B, h_k, w_k)`, coarse first. Fields: `MultiscaleQuantizerConfig`.

    Scale k takes the codes nearest to the residual's area average, adds phi_k of their vectors, bicubically enlarged,
    to the sum f_k, and the residual becomes z - f_k; the features are the last sum, straight-through. The last scale is
    not resampled. Losses, means over scales as VAR's: `codebook` = |sg[z] - f_k|^2, which trains the codebook and phi,
    and `commitment` = beta |z - sg[f_k]|^2. `perplexity` is the mean over scales; the other stats are those of the
    codebook after its last update, one a scale.
    """

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.config = config = MultiscaleQuantizerConfig(**fields)
        self.in_dim = self.dim = config.dim
        self.codebook = VectorQuantizer(num_codes=config.num_codes, dim=config.dim, revive_after=config.revive_after)
        self.phis = nn.ModuleList(nn.Conv2d(config.dim, config.dim, 3, padding=1) for _ in range(config.phis))
        self._phi_of_scale = phi_of_scale(len(config.grids), config.phis) if config.phis else []

    def layout(self, grid: tuple[int, ...]) -> CodeLayout:
        """One grid a scale. Raises `ValueError` for any grid but the last scale."""
        grids = self.config.grids
        if tuple(grid) != grids[-1]:
            got, wanted = ("x".join(map(str, sides)) for sides in (grid, grids[-1]))
            raise ValueError(
                f"the scales end in a grid of {wanted}, the features' is {got}: give images of the size that it was "
                "made for, or build it with other `scales`"
            )
        return CodeLayout(grids, 1, (self.config.num_codes,) * len(grids))

    def encode(self, features: Tensor) -> Codes:
        """`(B, D, h, w)` -> int64 codes of each scale. Raises `ValueError` for other grids, non-finite features."""
        self.layout(features.shape[2:])
        codes = []
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            residual = features.float()
            for scale in range(len(self.config.grids)):
                codes.append(self.codebook.encode(self._shrunk(residual, scale)))
                residual = residual - self._enlarged(codes[-1], scale)
        return _as_codes(codes)

    def lookup(self, codes: Codes) -> Tensor:
        """int64 codes of each scale -> `(B, D, h, w)`. Raises `ValueError` for other grids and codes out of range."""
        grids = self.config.grids
        parts = codes if isinstance(codes, (tuple, list)) else (codes,)
        if [tuple(part.shape[1:]) for part in parts] != list(grids):
            got = [tuple(part.shape[1:]) for part in parts]
            raise ValueError(f"codes must be one (B, h, w) a scale, {list(grids)}, got {got}")
        total: Tensor | None = None
        with torch.autocast(self.codebook.weight.device.type, enabled=False):
            for scale, part in enumerate(parts):
                check_codes(part, self.config.num_codes)
                enlarged = self._enlarged(part, scale)
                total = enlarged if total is None else total + enlarged
        assert total is not None
        return total.to(self.codebook.weight.dtype)

    def forward(self, features: Tensor) -> Quantized:
        """`(B, D, h, w)` -> `Quantized`. Raises `ValueError` for other grids and non-finite features."""
        self.layout(features.shape[2:])
        codes, perplexities, commitment, codebook = [], [], [], []
        with torch.autocast(features.device.type, enabled=False):
            z = features.float()
            residual, total, stats = z.detach(), None, {}
            for scale in range(len(self.config.grids)):
                found = self.codebook(self._shrunk(residual, scale))
                enlarged = self._enlarged(found.codes, scale)
                total = enlarged if total is None else total + enlarged
                residual = residual - enlarged.detach()
                commitment.append(F.mse_loss(z, total.detach()))
                codebook.append(F.mse_loss(total, z.detach()))
                codes.append(found.codes)
                stats = found.stats
                perplexities += [stats["perplexity"]] if stats else []
            assert total is not None
            losses = {
                "commitment": self.config.beta * torch.stack(commitment).mean(),
                "codebook": torch.stack(codebook).mean() + sum(0 * unused.sum() for unused in self._unused()),
            }
            quantized = straight_through(total, z).to(self.codebook.weight.dtype)
        if stats:
            stats = {**stats, "perplexity": torch.stack(perplexities).mean()}
        return Quantized(quantized, _as_codes(codes), losses, stats)

    def _shrunk(self, residual: Tensor, scale: int) -> Tensor:
        grid = self.config.grids[scale]
        return residual if scale == len(self.config.grids) - 1 else F.interpolate(residual, size=grid, mode="area")

    def _enlarged(self, codes: Tensor, scale: int) -> Tensor:
        """phi of the vectors of a scale's codes, float32 `(B, D, h, w)`."""
        grids, ratio = self.config.grids, self.config.phi_ratio
        h = F.embedding(codes, self.codebook.weight).float().movedim(-1, 1)
        if scale < len(grids) - 1:
            h = F.interpolate(h, size=grids[-1], mode="bicubic")
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


def _as_codes(codes: list[Tensor]) -> Codes:
    return tuple(codes) if len(codes) > 1 else codes[0]
