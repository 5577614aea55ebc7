"""DCGAN's discriminator (Radford et al., arXiv 1511.06434): strided convolutions, no pooling, one logit an image."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from tokenizers_vq.batch import Batch
from tokenizers_vq.discriminators.base import Embedded, Split
from tokenizers_vq.discriminators.layers import (
    ConvolutionFields,
    Reference,
    Width,
    bounded,
    check_reference,
    features_of,
    halvings,
)
from tokenizers_vq.discriminators.patchgan import conv_block


class DCGANConfig(ConvolutionFields):
    """Strided 4x4 convolutions down to a shorter side of 4 to 7, leaky ReLU of slope 0.2, one logit of all the rest."""

    kind: Literal["dcgan"] = "dcgan"
    width: Width = 64
    """channels after the first convolution; doubled by each one, to 8 times at most"""
    depth: Annotated[int, Field(ge=1, le=12)] | None = None
    """strided convolutions; null = as many as leave 4 pixels at the shorter side"""

    def build(self, channels: int = 3, image_size: tuple[int, int] = (256, 256)) -> DCGAN:
        return DCGAN(channels, image_size, **self.arguments())


class DCGAN(Split):
    """Images `(B, C, H, W)` of the size it was built for -> logits `(B, 1)`, and the features of each convolution.

    Raises `ValueError` for images that so many halvings leave less than 2 pixels of.
    """

    def __init__(self, channels: int = 3, image_size: tuple[int, int] = (256, 256), **fields: Any) -> None:
        config = DCGANConfig(**fields)
        super().__init__(config, channels, image_size)
        height, width = image_size
        depth = config.depth or max(halvings(height, width), 1)
        smallest = 2 << depth if config.depth else 8
        if min(image_size) < smallest:
            remedy = "lower its `depth` or enlarge" if config.depth else "enlarge"
            raise ValueError(
                f"dcgan needs images of at least {smallest}x{smallest}, got {height}x{width}: {remedy} `image_size`"
            )
        widths = [config.width * min(2**i, 8) for i in range(depth)]
        self.blocks = nn.Sequential()
        for i, w in enumerate(widths):
            self.blocks.append(conv_block(channels if i == 0 else widths[i - 1], w, 2, config, normed=i > 0))
        self.feature_width = widths[-1]
        self.embedding_widths = [widths[-1]]
        head = nn.Conv2d(widths[-1], 1, (height >> depth, width >> depth))
        nn.init.normal_(head.weight, 0.0, 0.02)
        self.head = bounded(head, config.norm == "spectral")
        virtual = config.norm == "virtual"
        self.reference = Reference(config.reference_size, channels, image_size) if virtual else None

    def check(self, batch: Batch) -> None:
        super().check(batch)
        check_reference("dcgan", self.config.norm, batch)

    def embed(self, images: Tensor) -> Embedded:
        """Images `(B, C, H, W)` in [-1, 1]."""
        features = features_of(self.blocks, images, self.reference)
        return Embedded(features[-1:], features)

    def decide(self, embeddings: list[Tensor]) -> list[Tensor]:
        return [self.head(embeddings[0]).flatten(1)]
