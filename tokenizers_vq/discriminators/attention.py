"""SAGAN's discriminator (Zhang et al., arXiv 1805.08318): residual, spectral norm everywhere, self-attention once."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tokenizers_vq.config import Config
from tokenizers_vq.discriminators.base import Embedded, Split
from tokenizers_vq.discriminators.layers import DownBlock, Width, bounded, halvings
from tokenizers_vq.networks.blocks import Score, l2_attention

SMALLEST = 8


class AttentionConfig(Config):
    """Blocks that halve the image until its shorter side is 4 to 7, self-attention behind one of them, one logit."""

    kind: Literal["attention"] = "attention"
    width: Width = 64
    """channels of the first block; doubled by each one, to 16 times at most"""
    resolution: Annotated[int, Field(ge=1)] = 32
    """shorter side of the feature map on which self-attention looks: that of the image halved once or more"""
    score: Score = "dot"
    """of two positions: product of query and key, or minus the distance of tied ones, which is Lipschitz"""

    def build(self, channels: int = 3, image_size: tuple[int, int] = (256, 256)) -> AttentionDiscriminator:
        return AttentionDiscriminator(channels, image_size, **self.arguments())


class AttentionDiscriminator(Split):
    """Images `(B, C, H, W)` of the size it was built for -> logits `(B, 1)`, and the features of each block.

    Raises `ValueError` for sides under 8, and for a resolution that no block has.
    """

    def __init__(self, channels: int = 3, image_size: tuple[int, int] = (256, 256), **fields: Any) -> None:
        config = AttentionConfig(**fields)
        super().__init__(config, channels, image_size)
        height, width = image_size
        if min(image_size) < SMALLEST:
            raise ValueError(
                f"attention needs images of at least {SMALLEST}x{SMALLEST}, got {height}x{width}: enlarge `image_size`"
            )
        count = halvings(*image_size)
        sides = [min(image_size) >> (i + 1) for i in range(count)]
        if config.resolution not in sides:
            raise ValueError(
                f"adversary.discriminator.resolution: {config.resolution} is not the side of a feature map that images "
                f"of {height}x{width} have: set it to {' or '.join(map(str, sides))}"
            )
        widths = [config.width * min(2**i, 16) for i in range(count)]
        self.blocks = nn.ModuleList(
            DownBlock(channels if i == 0 else widths[i - 1], width, first=i == 0) for i, width in enumerate(widths)
        )
        self.place = sides.index(config.resolution)
        self.attention = SelfAttention(widths[self.place], config.score)
        self.head = bounded(nn.Linear(widths[-1], 1))
        self.feature_width = widths[-1]
        self.embedding_widths = [widths[-1]]

    def embed(self, images: Tensor) -> Embedded:
        """Images `(B, C, H, W)` in [-1, 1]."""
        features = []
        for i, block in enumerate(self.blocks):
            images = block(images)
            if i == self.place:
                images = self.attention(images)
            features.append(images)
        return Embedded([F.relu(images).sum(dim=(2, 3))], features)

    def decide(self, embeddings: list[Tensor]) -> list[Tensor]:
        return [self.head(embeddings[0])]


class SelfAttention(nn.Module):
    """`(B, C, H, W)` -> the same: the features, plus a gate that begins at zero times what all positions tell each.

    `dot` is SAGAN's: keys and values at half the resolution, C / 8 channels to compare and C / 2 to tell.

    `l2` compares tied queries and keys by their distance, and what it tells is linear in them (`blocks.l2_attention`).
    """

    def __init__(self, width: int, score: Score) -> None:
        super().__init__()
        few, half = max(width // 8, 1), max(width // 2, 1)
        self.score = score
        self.query = _mix(width, few)
        if score == "dot":
            self.key = _mix(width, few)
        self.value = _mix(width if score == "dot" else few, half)
        self.out = _mix(half, width)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        return features + self.gate * self.attend(features)

    def attend(self, features: Tensor) -> Tensor:
        """What the other positions tell, `(B, C, H, W)`. Unfused: fused kernels have no second derivative."""
        told = self._dot(features) if self.score == "dot" else self._l2(features)
        out: Tensor = self.out(told.transpose(1, 2).unflatten(2, features.shape[-2:]))
        return out

    def _dot(self, features: Tensor) -> Tensor:
        query = self.query(features).flatten(2).transpose(1, 2)
        key, value = (F.max_pool2d(layer(features), 2).flatten(2) for layer in (self.key, self.value))
        return torch.softmax(query @ key, dim=-1) @ value.transpose(1, 2)

    def _l2(self, features: Tensor) -> Tensor:
        told = l2_attention(self.query(features).flatten(2).transpose(1, 2))
        value: Tensor = self.value(told.transpose(1, 2).unflatten(2, features.shape[-2:]))
        return value.flatten(2).transpose(1, 2)


def _mix(channels: int, width: int) -> nn.Module:
    return bounded(nn.Conv2d(channels, width, 1, bias=False))
