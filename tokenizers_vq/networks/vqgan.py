"""Encoder and decoder of VQGAN (Esser et al., arXiv 2012.09841): GroupNorm, swish, attention at chosen levels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from tokenizers_vq.config import MOST_LEVELS, Blocks, Config, ConfigError, Multiplier, Size
from tokenizers_vq.networks.base import Decoder, DecoderFields, Encoder
from tokenizers_vq.networks.blocks import (
    Attention,
    Conditioned,
    Convolution,
    Downsample,
    Norm,
    ResidualBlock,
    Score,
    Upsample,
    entered,
    group_norm,
    precise,
    stride_grid,
    swish,
    told,
)
from tokenizers_vq.networks.kernels import AdaptiveConv2d
from tokenizers_vq.networks.normalisation import GroupNorm


class _VqganConfig(Config):
    width: Size = 128
    """channels at the first level"""
    multipliers: tuple[Multiplier | Annotated[float, Field(gt=0, le=1024)], ...] = Field(
        default=(1, 1, 2, 2, 4), min_length=1, max_length=MOST_LEVELS
    )
    """channels of each level as multiples of `width`; every level after the first halves the size"""
    blocks: Blocks = Field(default=2, ge=1)
    """residual blocks a level"""
    attention: tuple[int, ...] = ()
    """levels (0 = full size) with attention after every residual block"""
    middle_attention: bool = True
    """attention between the two middle blocks"""
    heads: Size = 1
    """heads of every attention"""
    latent_width: Size | None = None
    """channels beside the quantizer, before `quant_conv` and after `post_quant_conv`; null = the code's"""
    quant_kernel: int = Field(default=1, ge=0, le=64)
    """side of the convolutions beside the quantizer, `quant_conv` and `post_quant_conv`; odd; 0 = none (Infinity)"""
    groups: Size = 32
    """groups of every GroupNorm; must divide every level's channels"""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """dropout inside the residual blocks"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for width in self.widths:
            if width < 1:
                raise ConfigError(("multipliers",), f"a level has {width} channels")
            if width % self.groups:
                raise ConfigError(("groups",), f"{self.groups} groups do not divide the {width} channels of a level")
            if width % self.heads:
                raise ConfigError(("heads",), f"{self.heads} heads do not divide the {width} channels of a level")
        if any(not 0 <= level < len(self.multipliers) for level in self.attention):
            raise ConfigError(("attention",), f"levels run from 0 to {len(self.multipliers) - 1}")
        if self.quant_kernel % 2 == 0 and self.quant_kernel:
            raise ConfigError(("quant_kernel",), f"must be odd to keep the grid, got {self.quant_kernel}")
        if not self.quant_kernel and self.latent_width is not None:
            raise ConfigError(
                ("latent_width",), "is the code's without convolutions beside the quantizer: leave it out"
            )
        return self

    @property
    def widths(self) -> list[int]:
        """Channels of each level, from full size down."""
        return [round(self.width * multiplier) for multiplier in self.multipliers]


class VqganEncoderConfig(_VqganConfig):
    """Encoder of VQGAN; the published f16 model has width 128, multipliers 1-1-2-2-4 and attention at level 4."""

    kind: Literal["vqgan"] = "vqgan"

    def build(self, *, dim: int, channels: int, image_size: tuple[int, int]) -> VqganEncoder:
        """The encoder for images of `channels` and features of `dim`."""
        return VqganEncoder(dim=dim, channels=channels, **self.arguments())


class VqganDecoderConfig(_VqganConfig, DecoderFields):
    """Decoder of VQGAN; `multipliers` and `attention` are counted from full size, as the encoder's."""

    kind: Literal["vqgan"] = "vqgan"
    blocks: Blocks = Field(default=3, ge=1)
    """residual blocks a level"""
    norm: Literal["group", "spatial"] = "group"
    """spatial: every norm scaled and shifted by the code at its place (MoVQ, arXiv 2209.09002)"""
    normalise_codes: bool = False
    """L2-normalise the codes' vectors first, though the search compares them as they are (Janus)"""
    kernels: int = Field(default=1, ge=1, le=64)
    """of each 3x3 convolution in the residual blocks; several: mixed and scaled by the image's code (GigaGAN)"""
    attention_score: Score = "dot"
    """of two positions: product of query and key, or minus the distance of tied ones, which is Lipschitz (GigaGAN)"""

    def build(self, *, dim: int, channels: int, image_size: tuple[int, int]) -> VqganDecoder:
        """The decoder from features of `dim` to images of `channels`."""
        return VqganDecoder(dim=dim, channels=channels, **self.arguments())


class _Layers(NamedTuple):
    """How a network makes its blocks and its attention."""

    config: _VqganConfig
    norm: Norm = group_norm
    convolution: Convolution | None = None
    score: Score = "dot"

    def block(self, width_in: int, width: int) -> ResidualBlock:
        """A residual block."""
        groups, dropout = self.config.groups, self.config.dropout
        return ResidualBlock(width_in, width, groups, dropout, norm=self.norm, convolution=self.convolution)

    def attention(self, width: int) -> Attention:
        """An attention."""
        return Attention(width, self.config.groups, self.config.heads, self.norm, self.score)

    def middle(self, width: int) -> _Steps:
        """What lies beside the code: two blocks, attention between them where the config has it."""
        attention = [self.attention(width)] if self.config.middle_attention else []
        first, last = (self.block(width, width) for _ in range(2))
        return _Steps(first, *attention, last)


class _Level(nn.Module):
    """Residual blocks, each followed by attention where the level has it, then an optional resampling."""

    def __init__(self, width_in: int, width: int, layers: _Layers, attend: bool, resample: nn.Module | None) -> None:
        super().__init__()
        blocks = layers.config.blocks
        self.blocks = nn.ModuleList(layers.block(width_in if i == 0 else width, width) for i in range(blocks))
        self.attention = nn.ModuleList(layers.attention(width) for _ in range(blocks if attend else 0))
        self.resample = resample

    def forward(self, x: Tensor, *code: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x, *code)
            if len(self.attention):
                x = self.attention[i](x, *code)
        return x if self.resample is None else self.resample(x)


class _Steps(nn.Sequential):
    """One after the other, each given what the first is given beside the features."""

    def forward(self, input: Tensor, *code: Tensor) -> Tensor:
        for step in self:
            input = step(input, *code)
        return input


class SpatialNorm(Conditioned):
    """GroupNorm of `(B, C, H, W)`, scaled and shifted by the code `(B, D, h, w)` at its place (arXiv 2209.09002).

    The nearest code counts, so that its 1x1 convolutions can work on the code's grid.
    """

    def __init__(self, dim: int, groups: int, width: int) -> None:
        super().__init__()
        self.norm = group_norm(groups, width)
        self.scale = nn.Conv2d(dim, width, 1)
        self.bias = nn.Conv2d(dim, width, 1)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        scale, bias = (
            F.interpolate(layer(code), size=x.shape[-2:], mode="nearest") for layer in (self.scale, self.bias)
        )
        return torch.addcmul(bias, self.norm(x), scale)


def _beside_codes(config: _VqganConfig, width_in: int, width: int) -> nn.Module:
    kernel = config.quant_kernel
    return nn.Conv2d(width_in, width, kernel, padding=kernel // 2) if kernel else nn.Identity()


class VqganEncoder(Encoder):
    """`(B, C, H, W)` pixels -> `(B, dim, H/s, W/s)` features, s = 2^(levels - 1). Fields: `VqganEncoderConfig`."""

    def __init__(self, *, dim: int, channels: int = 3, **fields: Any) -> None:
        super().__init__()
        config = VqganEncoderConfig(**fields)
        widths, layers = config.widths, _Layers(config)
        last = len(widths) - 1
        self.stride = 2**last
        self.conv_in = nn.Conv2d(channels, config.width, 3, padding=1)
        self.levels = nn.Sequential(
            *(
                _Level(before, width, layers, level in config.attention, Downsample(width) if level < last else None)
                for level, (before, width) in enumerate(zip([config.width, *widths], widths, strict=False))
            )
        )
        self.middle = layers.middle(widths[-1])
        self.norm = GroupNorm(config.groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.latent_width or dim, 3, padding=1)
        self.quant_conv = _beside_codes(config, config.latent_width or dim, dim)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return stride_grid(height, width, self.stride)

    def forward(self, pixels: Tensor) -> Tensor:
        return precise(self._to_features, self.middle(self.levels(entered(self.conv_in, pixels))))

    def _to_features(self, h: Tensor) -> Tensor:
        return self.quant_conv(self.conv_out(swish(self.norm(h))))

    def trunk_blocks(self) -> Iterator[nn.Module]:
        yield from self.levels
        yield self.middle


class VqganDecoder(Decoder):
    """`(B, dim, h, w)` features -> `(B, C, h*s, w*s)` output. Fields: `VqganDecoderConfig`."""

    def __init__(self, *, dim: int, channels: int = 3, **fields: Any) -> None:
        super().__init__()
        config = VqganDecoderConfig(**fields)
        self.distribution = config.output
        self.normalise_codes = config.normalise_codes
        norm: Norm = partial(SpatialNorm, dim) if config.norm == "spatial" else group_norm
        adaptive = partial(AdaptiveConv2d, dim, config.kernels) if config.kernels > 1 else None
        layers = _Layers(config, norm, adaptive, config.attention_score)
        widths = config.widths
        self.post_quant_conv = _beside_codes(config, dim, config.latent_width or dim)
        self.conv_in = nn.Conv2d(config.latent_width or dim, widths[-1], 3, padding=1)
        self.middle = layers.middle(widths[-1])
        before = [*widths[1:], widths[-1]]
        self.levels = _Steps(
            *(
                _Level(before[i], widths[i], layers, i in config.attention, Upsample(widths[i]) if i > 0 else None)
                for i in reversed(range(len(widths)))
            )
        )
        self.norm = norm(config.groups, widths[0])
        self.head = nn.Conv2d(widths[0], config.output_channels(channels), 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        if self.normalise_codes:
            features = F.normalize(features, dim=1)
        return self._synthesise(self.post_quant_conv(features), features)

    def _synthesise(self, h: Tensor, code: Tensor) -> Tensor:
        h = self.levels(self.middle(self.conv_in(h), code), code)
        return self.head(swish(told(self.norm, h, code)))

    def trunk_blocks(self) -> Iterator[nn.Module]:
        yield self.middle
        yield from self.levels
