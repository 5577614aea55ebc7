"""Encoder and decoder of VQ-VAE-2 (Razavi et al., arXiv 1906.00446): several grids, the finer given the coarser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tokenizers_vq.config import MOST_LEVELS, Blocks, Config, Halvings, Size
from tokenizers_vq.networks.base import Decoder, DecoderFields
from tokenizers_vq.networks.blocks import precise, stride_grid
from tokenizers_vq.networks.vqvae import residual_blocks


class _Vqvae2Config(Config):
    width: Size = Field(default=128, ge=2)
    """channels of every layer; half of them beside the finest"""
    downsamples: tuple[Halvings, ...] = Field(default=(1, 2), min_length=2, max_length=MOST_LEVELS)
    """for each level, coarse first, how often its size is halved: the last from the image, others from the next"""
    blocks: Blocks = 2
    """residual blocks of each level"""
    block_width: Size = 32
    """channels inside a residual block"""


class Vqvae2EncoderConfig(_Vqvae2Config):
    """Strided convolutions and residual blocks a level; the finer levels' heads decode the coarser codes."""

    kind: Literal["vqvae2"] = "vqvae2"

    def build(
        self, *, in_dims: Sequence[int], dims: Sequence[int], channels: int, image_size: tuple[int, int]
    ) -> Vqvae2Encoder:
        """The encoder for images of `channels`: latents of `in_dims`, given codes of `dims`, coarse first."""
        return Vqvae2Encoder(in_dims=in_dims, dims=dims, channels=channels, **self.arguments())


class Vqvae2DecoderConfig(_Vqvae2Config, DecoderFields):
    """All levels at the finest grid, side by side, then residual blocks and transposed convolutions."""

    kind: Literal["vqvae2"] = "vqvae2"

    def build(self, *, dims: Sequence[int], channels: int, image_size: tuple[int, int]) -> Vqvae2Decoder:
        """The decoder from codes of `dims`, coarse first, to images of `channels`."""
        return Vqvae2Decoder(dims=dims, channels=channels, **self.arguments())


class _Down(nn.Module):
    """`(B, C, H, W)` -> `(B, width, H/2^n, W/2^n)`: n strided convolutions, one more, residual blocks, ReLU."""

    def __init__(self, width_in: int, downsamples: int, config: _Vqvae2Config) -> None:
        super().__init__()
        half = config.width // 2
        widths = [width_in, half, *[config.width] * (downsamples - 1)]
        self.strided = nn.ModuleList(
            nn.Conv2d(before, after, 4, stride=2, padding=1) for before, after in pairwise(widths)
        )
        self.conv = nn.Conv2d(widths[-1], config.width, 3, padding=1)
        self.blocks = residual_blocks(config.blocks, config.width, config.block_width)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.strided
        h = F.relu(precise(first, x))
        for convolution in others:
            h = F.relu(convolution(h))
        return F.relu(self.blocks(self.conv(h)))


class _Up(nn.Module):
    """`(B, C, h, w)` -> `(B, width_out, h 2^n, w 2^n)`: a convolution, residual blocks, n transposed convolutions."""

    def __init__(self, width_in: int, width_out: int, upsamples: int, config: _Vqvae2Config) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, config.width, 3, padding=1)
        self.blocks = residual_blocks(config.blocks, config.width, config.block_width)
        widths = [config.width] * upsamples
        if upsamples > 1:
            widths[-1] = config.width // 2
        self.strided = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 4, stride=2, padding=1) for before, after in pairwise(widths)
        )
        self.head = nn.ConvTranspose2d(widths[-1], width_out, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.blocks(self.conv(x)))
        for convolution in self.strided:
            h = F.relu(convolution(h))
        return self.head(h)


class _Join(nn.Module):
    """Vectors of several levels, coarse first -> side by side at the finest of their grids.

    `(B, D_j, *grid_j)` -> `(B, sum D_j, *grid_last)`. `downsamples`: halvings from each level's next finer one to it.
    """

    def __init__(self, dims: Sequence[int], downsamples: Sequence[int]) -> None:
        super().__init__()
        self.upsample = nn.ModuleList(
            nn.Sequential(
                *(nn.ConvTranspose2d(dim, dim, 4, stride=2, padding=1) for _ in range(sum(downsamples[level:])))
            )
            for level, dim in enumerate(dims[:-1])
        )

    def forward(self, vectors: Sequence[Tensor]) -> Tensor:
        *coarser, finest = vectors
        return torch.cat([*(up(v) for up, v in zip(self.upsample, coarser, strict=True)), finest], dim=1)


class _Head(nn.Module):
    """A level's features and the coarser levels' code vectors -> its latents.

    `(B, width, h, w)`, vectors coarse first -> `(B, in_dim, h, w)`. `dims`: of the coarser codes; none at the top.
    """

    def __init__(self, in_dim: int, dims: Sequence[int], downsamples: Sequence[int], config: _Vqvae2Config) -> None:
        super().__init__()
        self.join = _Join(dims, downsamples[:-1]) if dims else None
        self.up = _Up(sum(dims), dims[-1], downsamples[-1], config) if dims else None
        self.quant_conv = nn.Conv2d(config.width + (dims[-1] if dims else 0), in_dim, 1)

    def forward(self, features: Tensor, coarser: Sequence[Tensor] = ()) -> Tensor:
        if self.join is not None and self.up is not None:
            features = torch.cat([self.up(self.join(coarser)), features], dim=1)
        return precise(self.quant_conv, features)


class Vqvae2Encoder(nn.Module):
    """`(B, C, H, W)` pixels -> features of every level, a tuple, coarse first. Fields: `Vqvae2EncoderConfig`.

    `heads[i](features[i], coarser)` gives level i's latents `(B, in_dims[i], *grid)` from its features and the
    looked-up vectors of all coarser levels (arXiv 1906.00446, algorithm 1).
    """

    def __init__(self, *, in_dims: Sequence[int], dims: Sequence[int], channels: int = 3, **fields: Any) -> None:
        super().__init__()
        config = Vqvae2EncoderConfig(**fields)
        self.downsamples = config.downsamples
        finest = len(config.downsamples) - 1
        self.levels = nn.ModuleList(
            _Down(channels if level == finest else config.width, count, config)
            for level, count in enumerate(config.downsamples)
        )
        self.heads = nn.ModuleList(
            _Head(in_dim, dims[:level], config.downsamples[:level], config) for level, in_dim in enumerate(in_dims)
        )

    def grids(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """Grids of the features, coarse first. Raises `ValueError` naming the nearest sizes that work."""
        stride_grid(height, width, 2 ** sum(self.downsamples))
        strides = [2 ** sum(self.downsamples[level:]) for level in range(len(self.downsamples))]
        return tuple((height // stride, width // stride) for stride in strides)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        h, features = pixels, []
        for level in reversed(self.levels):
            h = level(h)
            features.append(h)
        return tuple(reversed(features))

    def trunk_blocks(self) -> Iterator[nn.Module]:
        """Modules that compile one by one, in place."""
        for level in self.levels:
            yield level.blocks  # type: ignore[misc]  # of Modules, as far as ModuleList says


class Vqvae2Decoder(Decoder):
    """Vectors `(B, D_i, *grid_i)` of every level, coarse first -> `(B, C, H, W)` output. Fields: `Vqvae2DecoderConfig`.

    The coarser ones are upsampled by transposed convolutions and stand beside the finest.
    """

    def __init__(self, *, dims: Sequence[int], channels: int = 3, **fields: Any) -> None:
        super().__init__()
        config = Vqvae2DecoderConfig(**fields)
        self.distribution = config.output
        self.join = _Join(dims, config.downsamples[:-1])
        self.up = _Up(sum(dims), config.output_channels(channels), config.downsamples[-1], config)

    @property
    def head(self) -> nn.Module:  # type: ignore[override]  # the last layer of a part inside
        return self.up.head

    def forward(self, features: Sequence[Tensor]) -> Tensor:  # type: ignore[override]  # one a level
        return self.up(self.join(features))

    def trunk_blocks(self) -> Iterator[nn.Module]:
        yield self.up.blocks
