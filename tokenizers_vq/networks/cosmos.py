"""Encoder and decoder of NVIDIA Cosmos' image tokenizers: VQGAN's, between Haar wavelets and their inverse."""

from __future__ import annotations

from typing import Any, Literal

import torch
from einops import rearrange
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from tokenizers_vq.config import MOST_LEVELS, Config, ConfigError, Multiplier, Size
from tokenizers_vq.networks.blocks import Downsample, Upsample, stride_grid
from tokenizers_vq.networks.vqgan import VqganDecoder, VqganDecoderConfig, VqganEncoder, VqganEncoderConfig


class _Wavelets(Config):
    patch: int = Field(default=4, ge=1, le=256)
    """side of the patches that wavelets turn into channels; a power of two"""
    resamplings: int = Field(default=2, ge=0, le=MOST_LEVELS)
    """how often the size is halved after the wavelets: at that many first levels of the encoder, last of the decoder"""
    multipliers: tuple[Multiplier, ...] = Field(default=(2, 4, 4), min_length=1, max_length=MOST_LEVELS)
    """channels of each level as multiples of `width`"""
    latent_width: Size | None = 256
    """channels beside the quantizer, before `quant_conv` and after `post_quant_conv`; null = the code's"""

    @field_validator("patch")
    @classmethod
    def _power_of_two(cls, patch: int) -> int:
        if patch & (patch - 1):
            raise ValueError(f"wavelets take patches of a power of two, not {patch}: give 1, 2, 4 or 8")
        return patch

    @model_validator(mode="after")
    def _check_resamplings(self) -> Self:
        levels = len(self.multipliers)
        if self.resamplings > levels:
            raise ConfigError(("resamplings",), f"{levels} levels hold at most as many, not {self.resamplings}")
        return self

    def network(self, config: type[Config]) -> dict[str, Any]:
        """The fields that are VQGAN's."""
        return {name: getattr(self, name) for name in config.model_fields if name != "kind"}


class CosmosEncoderConfig(_Wavelets, VqganEncoderConfig):
    """VQGAN's encoder behind wavelets; the published DI16x16 is the default, DI8x8 has one resampling."""

    kind: Literal["cosmos"] = "cosmos"  # type: ignore[assignment]  # narrows the parent's

    def build(self, *, dim: int, channels: int, image_size: tuple[int, int]) -> CosmosEncoder:
        """The encoder for images of `channels` and features of `dim`."""
        return CosmosEncoder(dim=dim, channels=channels, **self.arguments())


class CosmosDecoderConfig(_Wavelets, VqganDecoderConfig):
    """VQGAN's decoder before the inverse wavelets; `multipliers` are counted from full size, as the encoder's."""

    kind: Literal["cosmos"] = "cosmos"  # type: ignore[assignment]  # narrows the parent's

    def build(self, *, dim: int, channels: int, image_size: tuple[int, int]) -> CosmosDecoder:
        """The decoder from features of `dim` to images of `channels`."""
        return CosmosDecoder(dim=dim, channels=channels, **self.arguments())


def haar(x: Tensor, patch: int) -> Tensor:
    """`(B, C, H, W)` -> `(B, C patch^2, H / patch, W / patch)`: the Haar transform, applied again to all its bands.

    Each time 2x2 pixels become their mean, then half the differences of rows, of columns, and both; bands outermost.
    """
    while patch > 1:
        a, b, c, d = rearrange(x, "b c (h i) (w j) -> (i j) b c h w", i=2, j=2)
        x = torch.cat([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d], dim=1) / 4
        patch //= 2
    return x


def inverse_haar(x: Tensor, patch: int) -> Tensor:
    """`(B, C patch^2, h, w)` -> `(B, C, h patch, w patch)`, the inverse of `haar`."""
    while patch > 1:
        mean, rows, columns, both = x.chunk(4, dim=1)
        pixels = [
            mean + rows + columns + both,
            mean + rows - columns - both,
            mean - rows + columns - both,
            mean - rows - columns + both,
        ]
        x = rearrange(torch.stack(pixels), "(i j) b c h w -> b c (h i) (w j)", i=2, j=2)
        patch //= 2
    return x


class CosmosEncoder(VqganEncoder):
    """`(B, C, H, W)` pixels -> `(B, dim, H/s, W/s)`, s = patch x 2^resamplings. Fields: `CosmosEncoderConfig`."""

    def __init__(self, *, dim: int, channels: int = 3, **fields: Any) -> None:
        config = CosmosEncoderConfig(**fields)
        super().__init__(dim=dim, channels=channels * config.patch**2, **config.network(VqganEncoderConfig))
        self.patch, self.stride = config.patch, config.patch * 2**config.resamplings
        for i, (level, multiplier) in enumerate(zip(self.levels, config.multipliers, strict=True)):
            down = Downsample(config.width * multiplier) if i < config.resamplings else None
            level.resample = down  # type: ignore[assignment]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return stride_grid(height, width, self.stride)

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(haar(pixels, self.patch))


class CosmosDecoder(VqganDecoder):
    """`(B, dim, h, w)` features -> `(B, C, h*s, w*s)` output. Fields: `CosmosDecoderConfig`.

    `head` gives the wavelets' bands, whose inverse, an orthogonal map up to a factor, makes the output.
    """

    head: nn.Conv2d

    def __init__(self, *, dim: int, channels: int = 3, **fields: Any) -> None:
        config = CosmosDecoderConfig(**fields)
        super().__init__(dim=dim, channels=channels * config.patch**2, **config.network(VqganDecoderConfig))
        self.patch = config.patch
        for i, (level, multiplier) in enumerate(zip(self.levels, reversed(config.multipliers), strict=True)):
            up = Upsample(config.width * multiplier) if i < config.resamplings else None
            level.resample = up  # type: ignore[assignment]

    def forward(self, features: Tensor) -> Tensor:
        return inverse_haar(super().forward(features), self.patch)
