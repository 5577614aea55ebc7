"""Encoder and decoder of Open-MAGVIT2 (Luo et al., arXiv 2409.04410): no attention, norms conditioned on the code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch.nn.functional as F
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from tokenizers_vq.config import MOST_LEVELS, Blocks, Config, ConfigError, Multiplier, Size
from tokenizers_vq.networks.base import Decoder, DecoderFields, Encoder
from tokenizers_vq.networks.blocks import ResidualBlock, entered, precise, stride_grid, swish
from tokenizers_vq.networks.normalisation import GroupNorm

_EPS = 1e-6


class _Magvit2Config(Config):
    width: Size = 128
    """channels at the first level"""
    multipliers: tuple[Multiplier, ...] = Field(default=(1, 1, 2, 2, 4), min_length=1, max_length=MOST_LEVELS)
    """channels of each level as multiples of `width`; every level after the first halves the size"""
    blocks: Blocks = Field(default=4, ge=1)
    """residual blocks a level, and in the middle"""
    groups: Size = 32
    """groups of every GroupNorm; must divide every level's channels"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for width in self.widths:
            if width % self.groups:
                raise ConfigError(("groups",), f"{self.groups} groups do not divide the {width} channels of a level")
        return self

    @property
    def widths(self) -> list[int]:
        """Channels of each level, from full size down."""
        return [self.width * multiplier for multiplier in self.multipliers]


class Magvit2EncoderConfig(_Magvit2Config):
    """Encoder of Open-MAGVIT2; the published f16 models are the default."""

    kind: Literal["magvit2"] = "magvit2"

    def build(self, *, dim: int, channels: int, image_size: tuple[int, int]) -> Magvit2Encoder:
        """The encoder for images of `channels` and features of `dim`."""
        return Magvit2Encoder(dim=dim, channels=channels, **self.arguments())


class Magvit2DecoderConfig(_Magvit2Config, DecoderFields):
    """Decoder of Open-MAGVIT2; `multipliers` are counted from full size, as the encoder's."""

    kind: Literal["magvit2"] = "magvit2"

    def build(self, *, dim: int, channels: int, image_size: tuple[int, int]) -> Magvit2Decoder:
        """The decoder from features of `dim` to images of `channels`."""
        return Magvit2Decoder(dim=dim, channels=channels, **self.arguments())


def _blocks(width_in: int, width: int, config: _Magvit2Config) -> nn.Sequential:
    return nn.Sequential(
        *(ResidualBlock(width_in if i == 0 else width, width, config.groups, bias=False) for i in range(config.blocks))
    )


class AdaptiveGroupNorm(nn.Module):
    """GroupNorm of `(B, C, H, W)` whose scale and bias are linear in statistics of the code `(B, D, h, w)`.

    The scale reads each channel's standard deviation over the grid (unbiased, plus 1e-6 under the root; of a single
    position 0), the bias its mean.
    """

    def __init__(self, dim: int, width: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.scale = nn.Linear(dim, width)
        self.bias = nn.Linear(dim, width)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        flat = code.flatten(2)
        variance = flat.var(-1, correction=min(1, flat.shape[2] - 1))
        scale, bias = self.scale((variance + _EPS).sqrt()), self.bias(flat.mean(-1))
        return scale[..., None, None] * F.group_norm(x, self.groups, eps=_EPS) + bias[..., None, None]


class PixelShuffleUpsample(nn.Module):
    """3x3 convolution to four times the channels, which become 2x2 positions. `(B, C, H, W)` -> `(B, C, 2H, 2W)`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 4 * width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # Positions outside the channels, unlike torch's pixel_shuffle.
        return rearrange(self.conv(x), "b (r1 r2 c) h w -> b c (h r1) (w r2)", r1=2, r2=2)


class _EncoderLevel(nn.Module):
    def __init__(self, width_in: int, width: int, config: _Magvit2Config, last: bool) -> None:
        super().__init__()
        self.blocks = _blocks(width_in, width, config)
        self.resample = nn.Identity() if last else nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(self.blocks(x))


class _DecoderLevel(nn.Module):
    def __init__(self, width_in: int, width: int, dim: int, config: _Magvit2Config, last: bool) -> None:
        super().__init__()
        self.adaptive = AdaptiveGroupNorm(dim, width_in, config.groups)
        self.blocks = _blocks(width_in, width, config)
        self.resample = nn.Identity() if last else PixelShuffleUpsample(width)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        return self.resample(self.blocks(self.adaptive(x, code)))


class Magvit2Encoder(Encoder):
    """`(B, C, H, W)` pixels -> `(B, dim, H/s, W/s)` features, s = 2^(levels - 1). Fields: `Magvit2EncoderConfig`."""

    def __init__(self, *, dim: int, channels: int = 3, **fields: Any) -> None:
        super().__init__()
        config = Magvit2EncoderConfig(**fields)
        widths = config.widths
        self.stride = 2 ** (len(widths) - 1)
        self.conv_in = nn.Conv2d(channels, config.width, 3, padding=1, bias=False)
        before = [config.width, *widths[:-1]]
        self.levels = nn.Sequential(
            *(_EncoderLevel(before[i], widths[i], config, i == len(widths) - 1) for i in range(len(widths)))
        )
        self.middle = _blocks(widths[-1], widths[-1], config)
        self.norm = GroupNorm(config.groups, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], dim, 1)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return stride_grid(height, width, self.stride)

    def forward(self, pixels: Tensor) -> Tensor:
        return precise(self._to_features, self.middle(self.levels(entered(self.conv_in, pixels))))

    def _to_features(self, h: Tensor) -> Tensor:
        return self.conv_out(swish(self.norm(h)))

    def trunk_blocks(self) -> Iterator[nn.Module]:
        yield from self.levels
        yield self.middle


class Magvit2Decoder(Decoder):
    """`(B, dim, h, w)` features -> `(B, C, h*s, w*s)` output. Fields: `Magvit2DecoderConfig`.

    Every level begins with a norm conditioned on the whole code, so an image's parts depend on all of its codes.
    """

    def __init__(self, *, dim: int, channels: int = 3, **fields: Any) -> None:
        super().__init__()
        config = Magvit2DecoderConfig(**fields)
        self.distribution = config.output
        widths = config.widths
        self.conv_in = nn.Conv2d(dim, widths[-1], 3, padding=1)
        self.middle = _blocks(widths[-1], widths[-1], config)
        before = [*widths[1:], widths[-1]]
        self.levels = nn.ModuleList(
            _DecoderLevel(before[i], widths[i], dim, config, i == 0) for i in reversed(range(len(widths)))
        )
        self.norm = GroupNorm(config.groups, widths[0], eps=_EPS)
        self.head = nn.Conv2d(widths[0], config.output_channels(channels), 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        h = self.middle(self.conv_in(features))
        for level in self.levels:
            h = level(h, features)
        return self.head(swish(self.norm(h)))

    def trunk_blocks(self) -> Iterator[nn.Module]:
        yield self.middle
        yield from self.levels
