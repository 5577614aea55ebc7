"""Encoder and decoder of DALL-E's discrete VAE (Ramesh et al., arXiv 2102.12092, appendix A.2)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from tokenizers_vq.config import MOST_LEVELS, Blocks, Config, ConfigError, Multiplier, Size
from tokenizers_vq.networks.base import Decoder, DecoderFields, Encoder
from tokenizers_vq.networks.blocks import entered, precise, stride_grid

_BOTTLENECK = 4


class _DvaeConfig(Config):
    width: Size = 256
    """channels at the first level"""
    multipliers: tuple[Multiplier, ...] = Field(default=(1, 2, 4, 8), min_length=1, max_length=MOST_LEVELS)
    """channels of each level as multiples of `width`, finest first; every level after the first halves the size"""
    blocks: Blocks = Field(default=2, ge=1)
    """residual blocks a level"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if narrow := [self.width * multiplier for multiplier in self.multipliers if self.width * multiplier < 4]:
            raise ConfigError(("width",), f"a level of {narrow[0]} channels leaves none inside a block: give 4 or more")
        return self


class DvaeEncoderConfig(_DvaeConfig):
    """Residual bottleneck blocks and max-pooling; the published features are the logits of the codes."""

    kind: Literal["dvae"] = "dvae"

    def build(self, *, dim: int, channels: int, image_size: tuple[int, int]) -> DvaeEncoder:
        """The encoder for images of `channels` and features of `dim`."""
        return DvaeEncoder(dim=dim, channels=channels, **self.arguments())


class DvaeDecoderConfig(_DvaeConfig, DecoderFields):
    """Residual bottleneck blocks and nearest-neighbour upsampling; `multipliers` finest first, as the encoder's."""

    kind: Literal["dvae"] = "dvae"

    def build(self, *, dim: int, channels: int, image_size: tuple[int, int]) -> DvaeDecoder:
        """The decoder from features of `dim` to images of `channels`."""
        return DvaeDecoder(dim=dim, channels=channels, **self.arguments())


def _conv(width_in: int, width_out: int, kernel: int) -> nn.Conv2d:
    """Same size out; the published start: normal weights of variance 1 / fan-in, no bias."""
    conv = nn.Conv2d(width_in, width_out, kernel, padding=kernel // 2)
    nn.init.normal_(conv.weight, std=(width_in * kernel**2) ** -0.5)
    nn.init.constant_(conv.bias, 0.0)  # type: ignore[arg-type]  # there is a bias
    return conv


class BottleneckBlock(nn.Module):
    """ReLU and convolution, four times, a quarter as wide inside, times `gain`, plus the input (1x1 if widths differ).

    `(B, C, H, W)` -> `(B, C', H, W)`. `kernels`: sides of the four convolutions.
    """

    def __init__(self, width_in: int, width_out: int, kernels: tuple[int, ...], gain: float) -> None:
        super().__init__()
        inner = width_out // _BOTTLENECK
        widths = [width_in, inner, inner, inner, width_out]
        self.gain = gain
        self.convs = nn.ModuleList(
            _conv(before, after, kernel) for before, after, kernel in zip(widths, widths[1:], kernels, strict=False)
        )
        self.shortcut = _conv(width_in, width_out, 1) if width_in != width_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for conv in self.convs:
            h = conv(F.relu(h))
        return self.shortcut(x) + self.gain * h


def _levels(config: _DvaeConfig, widths: list[int], kernels: tuple[int, ...]) -> nn.ModuleList:
    """A sequence of blocks for each of `widths[1:]`, from a width of `widths[0]`."""
    gain = 1 / (len(config.multipliers) * config.blocks) ** 2
    return nn.ModuleList(
        nn.Sequential(
            *(BottleneckBlock(before if i == 0 else after, after, kernels, gain) for i in range(config.blocks))
        )
        for before, after in pairwise(widths)
    )


class DvaeEncoder(Encoder):
    """`(B, C, H, W)` pixels -> `(B, dim, H/s, W/s)` features, s = 2^(levels - 1). Fields: `DvaeEncoderConfig`."""

    def __init__(self, *, dim: int, channels: int = 3, **fields: Any) -> None:
        super().__init__()
        config = DvaeEncoderConfig(**fields)
        widths = [config.width * multiplier for multiplier in config.multipliers]
        self.stride = 2 ** (len(widths) - 1)
        self.conv_in = _conv(channels, config.width, 7)
        self.levels = _levels(config, [config.width, *widths], (3, 3, 3, 1))
        self.quant_conv = _conv(widths[-1], dim, 1)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return stride_grid(height, width, self.stride)

    def forward(self, pixels: Tensor) -> Tensor:
        h = entered(self.conv_in, pixels)
        for i, level in enumerate(self.levels):
            h = level(F.max_pool2d(h, 2) if i else h)
        return precise(lambda h: self.quant_conv(F.relu(h)), h)

    def trunk_blocks(self) -> Iterator[nn.Module]:
        yield from self.levels


class DvaeDecoder(Decoder):
    """`(B, dim, h, w)` features -> `(B, C, h*s, w*s)` output. Fields: `DvaeDecoderConfig`.

    The published decoder begins with a 1x1 convolution of one-hot codes. Its columns are the code's vectors, which the
    quantizer looks up; its bias is `bias` here.
    """

    def __init__(self, *, dim: int, channels: int = 3, **fields: Any) -> None:
        super().__init__()
        config = DvaeDecoderConfig(**fields)
        self.distribution = config.output
        widths = [config.width * multiplier for multiplier in config.multipliers]
        self.bias = nn.Parameter(torch.zeros(dim))
        self.levels = _levels(config, [dim, *reversed(widths)], (1, 3, 3, 3))
        self.head = _conv(widths[0], config.output_channels(channels), 1)

    def forward(self, features: Tensor) -> Tensor:
        h = features + self.bias[:, None, None]
        for i, level in enumerate(self.levels):
            h = level(F.interpolate(h, scale_factor=2.0, mode="nearest") if i else h)
        return self.head(F.relu(h))

    def trunk_blocks(self) -> Iterator[nn.Module]:
        yield from self.levels
