"""Encoder and decoder of MaskGIT's VQGAN (Chang et al., arXiv 2202.04200): VQGAN without attention, pooled down."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from tokenizers_vq.config import MOST_LEVELS, Blocks, Config, ConfigError, Multiplier, Size
from tokenizers_vq.networks.base import Decoder, DecoderFields, Encoder
from tokenizers_vq.networks.blocks import Upsample, entered, precise, stride_grid, swish
from tokenizers_vq.networks.normalisation import GroupNorm


class _MaskgitConfig(Config):
    width: Size = 128
    """channels at the first level"""
    multipliers: tuple[Multiplier, ...] = Field(default=(1, 1, 2, 2, 4), min_length=1, max_length=MOST_LEVELS)
    """channels of each level as multiples of `width`; every level after the first halves the size"""
    blocks: Blocks = Field(default=2, ge=1)
    """residual blocks a level, and in the middle"""
    groups: Size = 32
    """groups of every GroupNorm; must divide every level's channels"""
    shortcut: Literal["output", "input"] = "output"
    """what the 1x1 shortcut reads where the width changes: the published models' reads the block's output, a mistake"""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """dropout inside the residual blocks"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for multiplier in self.multipliers:
            if self.width * multiplier % self.groups:
                raise ConfigError(
                    ("groups",), f"{self.groups} groups do not divide the {self.width * multiplier} channels of a level"
                )
        return self

    @property
    def widths(self) -> list[int]:
        """Channels of each level, from full size down."""
        return [self.width * multiplier for multiplier in self.multipliers]


class MaskgitEncoderConfig(_MaskgitConfig):
    """Encoder of MaskGIT's VQGAN; the published f16 model is the default."""

    kind: Literal["maskgit"] = "maskgit"

    def build(self, *, dim: int, channels: int, image_size: tuple[int, int]) -> MaskgitEncoder:
        """The encoder for images of `channels` and features of `dim`."""
        return MaskgitEncoder(dim=dim, channels=channels, **self.arguments())


class MaskgitDecoderConfig(_MaskgitConfig, DecoderFields):
    """Decoder of MaskGIT's VQGAN; `multipliers` are counted from full size, as the encoder's."""

    kind: Literal["maskgit"] = "maskgit"

    def build(self, *, dim: int, channels: int, image_size: tuple[int, int]) -> MaskgitDecoder:
        """The decoder from features of `dim` to images of `channels`."""
        return MaskgitDecoder(dim=dim, channels=channels, **self.arguments())


class _Block(nn.Module):
    """GroupNorm, swish, 3x3 without bias, twice, and the shortcut. `(B, C, H, W)` -> `(B, C', H, W)`."""

    def __init__(self, width_in: int, width_out: int, config: _MaskgitConfig) -> None:
        super().__init__()
        self.norm1 = GroupNorm(config.groups, width_in, eps=1e-6)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1, bias=False)
        self.norm2 = GroupNorm(config.groups, width_out, eps=1e-6)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1, bias=False)
        self.of_output = width_in != width_out and config.shortcut == "output"
        read = width_out if self.of_output else width_in
        self.shortcut = nn.Conv2d(read, width_out, 1, bias=False) if width_in != width_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv1(swish(self.norm1(x))))
        h = self.conv2(self.dropout(swish(h)))
        return h + self.shortcut(h if self.of_output else x)


def _blocks(width_in: int, width_out: int, config: _MaskgitConfig) -> list[_Block]:
    return [_Block(width_in if i == 0 else width_out, width_out, config) for i in range(config.blocks)]


class MaskgitEncoder(Encoder):
    """`(B, C, H, W)` pixels -> `(B, dim, H/s, W/s)` features, s = 2^(levels - 1). Fields: `MaskgitEncoderConfig`."""

    def __init__(self, *, dim: int, channels: int = 3, **fields: Any) -> None:
        super().__init__()
        config = MaskgitEncoderConfig(**fields)
        widths = config.widths
        self.stride = 2 ** (len(widths) - 1)
        self.conv_in = nn.Conv2d(channels, config.width, 3, padding=1, bias=False)
        before = [config.width, *widths[:-1]]
        self.levels = nn.ModuleList(nn.Sequential(*_blocks(*pair, config)) for pair in zip(before, widths, strict=True))
        self.middle = nn.Sequential(*_blocks(widths[-1], widths[-1], config))
        self.norm = GroupNorm(config.groups, widths[-1], eps=1e-6)
        self.quant_conv = nn.Conv2d(widths[-1], dim, 1)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return stride_grid(height, width, self.stride)

    def forward(self, pixels: Tensor) -> Tensor:
        h = entered(self.conv_in, pixels)
        for i, level in enumerate(self.levels):
            h = level(h if i == 0 else F.avg_pool2d(h, 2))
        return precise(self._to_features, self.middle(h))

    def _to_features(self, h: Tensor) -> Tensor:
        return self.quant_conv(swish(self.norm(h)))

    def trunk_blocks(self) -> Iterator[nn.Module]:
        yield from self.levels
        yield self.middle


class MaskgitDecoder(Decoder):
    """`(B, dim, h, w)` features -> `(B, C, h*s, w*s)` output. Fields: `MaskgitDecoderConfig`."""

    def __init__(self, *, dim: int, channels: int = 3, **fields: Any) -> None:
        super().__init__()
        config = MaskgitDecoderConfig(**fields)
        self.distribution = config.output
        widths = config.widths
        self.post_quant_conv = nn.Conv2d(dim, widths[-1], 3, padding=1)
        self.middle = nn.Sequential(*_blocks(widths[-1], widths[-1], config))
        before = [*widths[1:], widths[-1]]
        self.levels = nn.Sequential(
            *(
                nn.Sequential(*_blocks(before[i], widths[i], config), *([Upsample(widths[i])] if i > 0 else []))
                for i in reversed(range(len(widths)))
            )
        )
        self.norm = GroupNorm(config.groups, widths[0], eps=1e-6)
        self.head = nn.Conv2d(widths[0], config.output_channels(channels), 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        h = self.levels(self.middle(self.post_quant_conv(features)))
        return self.head(swish(self.norm(h)))

    def trunk_blocks(self) -> Iterator[nn.Module]:
        yield self.middle
        yield from self.levels
