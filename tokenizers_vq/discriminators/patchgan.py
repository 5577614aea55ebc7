"""PatchGAN (Isola et al., arXiv 1611.07004): a convolutional discriminator of overlapping patches, VQGAN's choice."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from tokenizers_vq.batch import Batch
from tokenizers_vq.config import Config
from tokenizers_vq.discriminators.base import Discriminator, Judgement, check_channels
from tokenizers_vq.networks.normalisation import BatchNorm2d


class PatchGANConfig(Config):
    """Strided 4x4 convolutions; one logit a patch, of 70x70 pixels with 3 layers."""

    kind: Literal["patchgan"] = "patchgan"
    width: Annotated[int, Field(ge=1)] = 64
    """channels after the first convolution; doubled by each layer, to 8 times at most"""
    layers: Annotated[int, Field(ge=1)] = 3
    """strided convolutions"""
    norm: Literal["batch", "spectral", "none"] = "batch"
    """batch norm, spectral norm of every convolution (Miyato et al., arXiv 1802.05957), or none"""

    def build(self, channels: int = 3, image_size: tuple[int, int] = (256, 256)) -> PatchGAN:
        return PatchGAN(channels, image_size, **self.arguments())


class PatchGAN(Discriminator):
    """Images `(B, C, H, W)` -> logits `(B, 1, H / 2^layers - 2, W / 2^layers - 2)`, and the features of each block.

    Convolutional: it takes any size that holds a patch, and raises `ValueError` for smaller ones.
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
            # The first and the last convolution are never normalised.
            batch = config.norm == "batch" and i > 0
            block = [_conv(channels if i == 0 else widths[i - 1], width, stride, config.norm, bias=not batch)]
            if batch:
                block.append(_batch_norm(width))
            self.blocks.append(nn.Sequential(*block, nn.LeakyReLU(0.2)))
        self.head = _conv(widths[-1], 1, 1, config.norm, bias=True)

    def check(self, batch: Batch) -> None:
        check_channels(self, batch)
        self._check_size(*batch.images.shape[-2:])

    def _check_size(self, height: int, width: int) -> None:
        if min(height, width) < self.smallest:
            raise ValueError(
                f"patchgan needs images of at least {self.smallest}x{self.smallest}, got {height}x{width}: "
                "lower its `layers` or enlarge `image_size`"
            )

    def forward(self, images: Tensor) -> Judgement:
        """Images `(B, C, H, W)` in [-1, 1]."""
        self._check_size(*images.shape[-2:])
        features = []
        for block in self.blocks:
            images = block(images)
            features.append(images)
        return Judgement([self.head(images)], features, {})


def _conv(channels: int, width: int, stride: int, norm: str, bias: bool) -> nn.Module:
    conv = nn.Conv2d(channels, width, 4, stride, padding=1, bias=bias)
    nn.init.normal_(conv.weight, 0.0, 0.02)
    return spectral_norm(conv) if norm == "spectral" else conv


def _batch_norm(width: int) -> nn.Module:
    norm = BatchNorm2d(width)
    nn.init.normal_(norm.weight, 1.0, 0.02)
    return norm
