"""PatchGAN (Isola et al., arXiv 1611.07004): a convolutional discriminator of overlapping patches, VQGAN's choice."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from tokenizers_vq.batch import Batch
from tokenizers_vq.discriminators.base import Embedded, Split, check_channels
from tokenizers_vq.discriminators.layers import (
    Blur,
    ConvolutionFields,
    Reference,
    bounded,
    check_reference,
    features_of,
    has_norm,
    norms,
)


class PatchGANConfig(ConvolutionFields):
    """Strided 4x4 convolutions; one logit a patch, of 70x70 pixels with 3 layers."""

    kind: Literal["patchgan"] = "patchgan"
    width: Annotated[int, Field(ge=1)] = 64
    """channels after the first convolution; doubled by each layer, to 8 times at most"""
    layers: Annotated[int, Field(ge=1)] = 3
    """strided convolutions: its depth"""

    def build(self, channels: int = 3, image_size: tuple[int, int] = (256, 256)) -> PatchGAN:
        return PatchGAN(channels, image_size, **self.arguments())


class PatchGAN(Split):
    """Images `(B, C, H, W)` -> logits `(B, 1, H / 2^layers - 2, W / 2^layers - 2)`, and the features of each block.

    Convolutional: it takes any size that holds a patch, and raises `ValueError` for smaller ones. With virtual batch
    norm it takes the size that it was built for.
    """

    def __init__(self, channels: int = 3, image_size: tuple[int, int] = (256, 256), **fields: Any) -> None:
        config = PatchGANConfig(**fields)
        super().__init__(config, channels, image_size)
        self.smallest = 3 * 2**config.layers
        self._check_size(*image_size)
        widths = [config.width * min(2**i, 8) for i in range(config.layers + 1)]
        strides = [2] * config.layers + [1]
        self.blocks = nn.Sequential()
        for i, (width, stride) in enumerate(zip(widths, strides, strict=True)):
            before = channels if i == 0 else widths[i - 1]
            self.blocks.append(conv_block(before, width, stride, config, normed=i > 0))
        self.feature_width = widths[-1]
        self.embedding_widths = [widths[-1]]
        self.head = narrow_conv(widths[-1], 1, 1, config.norm == "spectral", bias=True)
        virtual = config.norm == "virtual"
        self.reference = Reference(config.reference_size, channels, image_size) if virtual else None

    def check(self, batch: Batch) -> None:
        check_channels(self, batch)
        self._check_size(*batch.images.shape[-2:])
        if self.config.norm == "virtual":
            super().check(batch)
            check_reference("patchgan", self.config.norm, batch)

    def _check_size(self, height: int, width: int) -> None:
        if min(height, width) < self.smallest:
            raise ValueError(
                f"patchgan needs images of at least {self.smallest}x{self.smallest}, got {height}x{width}: "
                "lower its `layers` or enlarge `image_size`"
            )

    def embed(self, images: Tensor) -> Embedded:
        """Images `(B, C, H, W)` in [-1, 1]."""
        self._check_size(*images.shape[-2:])
        features = features_of(self.blocks, images, self.reference)
        return Embedded(features[-1:], features)

    def decide(self, embeddings: list[Tensor]) -> list[Tensor]:
        return [self.head(embeddings[0])]


def conv_block(channels: int, width: int, stride: int, config: Any, normed: bool) -> nn.Sequential:
    """4x4 convolution, norm, leaky ReLU, and the blur where that downsamples. `config`: PatchGAN's or DCGAN's.

    The first convolution is never normalised but by spectral norm.
    """
    normed = normed and has_norm(config.norm)
    blurred = stride == 2 and config.downsampling == "blur"
    conv = narrow_conv(channels, width, 1 if blurred else stride, config.norm == "spectral", bias=not normed)
    # The convolution itself takes a pixel off each axis, which the blur's padding gives back.
    last = [Blur(padding=(2, 1))] if blurred else []
    between = norms(config.norm, width, config.reference_size) if normed else []
    return nn.Sequential(conv, *between, nn.LeakyReLU(0.2), *last)


def narrow_conv(channels: int, width: int, stride: int, spectral: bool, bias: bool) -> nn.Module:
    """4x4 convolution, padded by 1, of weights N(0, 0.02)."""
    conv = nn.Conv2d(channels, width, 4, stride, padding=1, bias=bias)
    nn.init.normal_(conv.weight, 0.0, 0.02)
    return bounded(conv, spectral)
