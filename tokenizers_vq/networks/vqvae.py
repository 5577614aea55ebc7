"""Encoder and decoder of VQ-VAE (van den Oord et al., arXiv 1711.00937, section 4.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_vq.config import Blocks, Config, Halvings, Size
from tokenizers_vq.networks.base import Decoder, DecoderFields, Encoder
from tokenizers_vq.networks.blocks import precise, stride_grid


class _VqvaeConfig(Config):
    width: Size = 256
    """channels of every layer"""
    downsamples: Halvings = 2
    """strided 4x4 convolutions, each halving the size"""
    blocks: Blocks = 2
    """residual blocks"""
    block_width: Size | None = None
    """channels inside a residual block; null = `width`"""


class VqvaeEncoderConfig(_VqvaeConfig):
    """Strided convolutions, then residual blocks."""

    kind: Literal["vqvae"] = "vqvae"

    def build(self, *, dim: int, channels: int, image_size: tuple[int, int]) -> VqvaeEncoder:
        """The encoder for images of `channels` and features of `dim`."""
        return VqvaeEncoder(dim=dim, channels=channels, **self.arguments())


class VqvaeDecoderConfig(_VqvaeConfig, DecoderFields):
    """Residual blocks, then transposed convolutions."""

    kind: Literal["vqvae"] = "vqvae"

    def build(self, *, dim: int, channels: int, image_size: tuple[int, int]) -> VqvaeDecoder:
        """The decoder from features of `dim` to images of `channels`."""
        return VqvaeDecoder(dim=dim, channels=channels, **self.arguments())


class _Block(nn.Module):
    """ReLU, 3x3, ReLU, 1x1, plus the input."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 3, padding=1)
        self.conv2 = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


def residual_blocks(count: int, width: int, inner: int) -> nn.Sequential:
    """`count` residual blocks of `width` channels, `inner` inside. `(B, width, H, W)`, same shape out."""
    return nn.Sequential(*(_Block(width, inner) for _ in range(count)))


def _blocks(config: _VqvaeConfig) -> nn.Sequential:
    return residual_blocks(config.blocks, config.width, config.block_width or config.width)


class VqvaeEncoder(Encoder):
    """`(B, C, H, W)` pixels -> `(B, dim, H/s, W/s)` features, s = 2^downsamples. Fields: `VqvaeEncoderConfig`."""

    def __init__(self, *, dim: int, channels: int = 3, **fields: Any) -> None:
        super().__init__()
        config = VqvaeEncoderConfig(**fields)
        self.stride = 2**config.downsamples
        self.strided = nn.ModuleList(
            nn.Conv2d(channels if i == 0 else config.width, config.width, 4, stride=2, padding=1)
            for i in range(config.downsamples)
        )
        self.blocks = _blocks(config)
        self.quant_conv = nn.Conv2d(config.width, dim, 1)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return stride_grid(height, width, self.stride)

    def forward(self, pixels: Tensor) -> Tensor:
        first, *others = self.strided
        h = F.relu(precise(first, pixels))
        for convolution in others:
            h = F.relu(convolution(h))
        return precise(self._to_features, h)

    def _to_features(self, h: Tensor) -> Tensor:
        return self.quant_conv(F.relu(self.blocks(h)))

    def trunk_blocks(self) -> Iterator[nn.Module]:
        yield from self.blocks


class VqvaeDecoder(Decoder):
    """`(B, dim, h, w)` features -> `(B, C, h*s, w*s)` output. Fields: `VqvaeDecoderConfig`."""

    def __init__(self, *, dim: int, channels: int = 3, **fields: Any) -> None:
        super().__init__()
        config = VqvaeDecoderConfig(**fields)
        self.distribution = config.output
        self.post_quant_conv = nn.Conv2d(dim, config.width, 3, padding=1)
        self.blocks = _blocks(config)
        self.strided = nn.ModuleList(
            nn.ConvTranspose2d(config.width, config.width, 4, stride=2, padding=1)
            for _ in range(config.downsamples - 1)
        )
        self.head = nn.ConvTranspose2d(config.width, config.output_channels(channels), 4, stride=2, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        h = F.relu(self.blocks(self.post_quant_conv(features)))
        for convolution in self.strided:
            h = F.relu(convolution(h))
        return self.head(h)

    def trunk_blocks(self) -> Iterator[nn.Module]:
        yield from self.blocks
