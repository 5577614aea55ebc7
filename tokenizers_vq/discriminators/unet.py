"""The U-Net discriminator (Schoenfeld et al., arXiv 2002.12655): one logit an image, and one a pixel."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tokenizers_vq.config import Config
from tokenizers_vq.discriminators.base import Embedded, Split
from tokenizers_vq.discriminators.layers import DownBlock, Width, bounded, halvings


class UNetConfig(Config):
    """BigGAN's blocks down to a shorter side of 4 to 7, with one logit there, and up again to every pixel."""

    kind: Literal["unet"] = "unet"
    width: Width = 64
    """channels of the first block; doubled by each one, to 8 times at most"""
    depth: Annotated[int, Field(ge=1, le=12)] | None = None
    """halvings; null = as many as leave 4 pixels at the shorter side"""

    def build(self, channels: int = 3, image_size: tuple[int, int] = (256, 256)) -> UNet:
        return UNet(channels, image_size, **self.arguments())


class UNet(Split):
    """Images `(B, C, H, W)` -> logits `(B, 1)` and `(B, 1, H, W)`, and the features on the way down.

    Spectral norm everywhere. Raises `ValueError` for sides that `2^depth` does not divide.
    """

    def __init__(self, channels: int = 3, image_size: tuple[int, int] = (256, 256), **fields: Any) -> None:
        config = UNetConfig(**fields)
        super().__init__(config, channels, image_size)
        depth = config.depth or max(halvings(*image_size), 1)
        if any(side % 2**depth for side in image_size):
            height, width = image_size
            raise ValueError(
                f"unet of depth {depth} needs sides that are multiples of {2**depth}, got {height}x{width}: "
                "set its `depth` or change `image_size`"
            )
        widths = [config.width * min(2**i, 8) for i in range(depth)]
        self.down = nn.ModuleList(
            DownBlock(channels if i == 0 else widths[i - 1], width, first=i == 0) for i, width in enumerate(widths)
        )
        self.head = bounded(nn.Linear(widths[-1], 1))
        # Beside what comes up lies what went down at the same size, once there was something.
        self.up = nn.ModuleList()
        for i, (width, above) in enumerate(itertools.pairwise([*reversed(widths), widths[0]])):
            self.up.append(UpBlock(width if i == 0 else 2 * width, above))
        self.pixels = bounded(nn.Conv2d(widths[0], 1, 1))
        self.feature_width = widths[-1]
        self.embedding_widths = [widths[-1], widths[0]]

    def embed(self, images: Tensor) -> Embedded:
        """Images `(B, C, H, W)` in [-1, 1]."""
        features: list[Tensor] = []
        for block in self.down:
            images = block(images)
            features.append(images)
        whole = F.relu(images).sum(dim=(2, 3))
        for i, block in enumerate(self.up):
            images = block(images if i == 0 else torch.cat([images, features[-1 - i]], dim=1))
        return Embedded([whole, F.relu(images)], features)

    def decide(self, embeddings: list[Tensor]) -> list[Tensor]:
        whole, pixels = embeddings
        return [self.head(whole), self.pixels(pixels)]


class UpBlock(nn.Module):
    """`(B, C, H, W)` -> `(B, D, 2 H, 2 W)`: nearest neighbour, two 3x3 convolutions, beside a linear shortcut."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = bounded(nn.Conv2d(channels, width, 3, padding=1))
        self.conv2 = bounded(nn.Conv2d(width, width, 3, padding=1))
        self.skip = bounded(nn.Conv2d(channels, width, 1, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.interpolate(F.relu(features), scale_factor=2.0, mode="nearest")
        hidden = self.conv2(F.relu(self.conv1(hidden)))
        return hidden + F.interpolate(self.skip(features), scale_factor=2.0, mode="nearest")
