"""BiGAN's joint discriminator (Donahue et al., arXiv 1605.09782): images together with the vectors of their codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_vq.batch import Batch
from tokenizers_vq.config import Config
from tokenizers_vq.discriminators.base import Discriminator, Judgement, Wrapper, check_channels, inside
from tokenizers_vq.discriminators.layers import Width

if TYPE_CHECKING:
    from tokenizers_vq.discriminators import DiscriminatorConfig


class JointConfig(Config):
    """The inner discriminator sees each image, real or reconstructed, above the quantized features of the real one.

    The features are mixed to a few channels, trained, and repeated to the size of the image. They have no gradient.
    """

    kind: Literal["joint"] = "joint"
    discriminator: DiscriminatorConfig
    """the one that sees both"""
    dim: Width
    """channels of the tokenizer's quantized features, one grid of rows and columns"""
    width: Width = 8
    """channels to which they are mixed"""

    def build(self, channels: int = 3, image_size: tuple[int, int] = (256, 256)) -> Joint:
        return Joint(channels, image_size, **self.arguments())


class Joint(Wrapper):
    """Images `(B, C, H, W)`, features `(B, dim, h, w)` -> the inner discriminator's judgement."""

    def __init__(self, channels: int = 3, image_size: tuple[int, int] = (256, 256), **fields: Any) -> None:
        Discriminator.__init__(self, JointConfig(**fields), channels, image_size)
        with inside("discriminator"):
            self.inner = self.config.discriminator.build(channels + self.config.width, image_size)
        self.feature_width = self.inner.feature_width
        self.mix = nn.Conv2d(self.config.dim, self.config.width, 1)

    def check(self, batch: Batch) -> None:
        check_channels(self, batch)
        rows, _, *size = batch.images.shape
        more = batch.images.new_zeros(rows, self.config.width, *size)
        with inside("discriminator"):
            self.inner.check(batch._replace(images=torch.cat([batch.images, more], dim=1)))

    def check_tokenizer(self, tokenizer: Any) -> None:
        super().check_tokenizer(tokenizer)
        grids = tokenizer.code_layout().grids
        if len(tokenizer.quantizers) > 1 or len(grids[-1]) != 2:
            shown = " + ".join("x".join(map(str, grid)) for grid in grids)
            raise ValueError(
                f"adversary.discriminator: joint needs one grid of rows and columns, this tokenizer has {shown}: "
                "take pair or another discriminator"
            )
        dim = tokenizer.quantizers[0].dim
        if dim != self.config.dim:
            raise ValueError(
                f"adversary.discriminator.dim: this tokenizer's quantized features have {dim} channels, dim is "
                f"{self.config.dim}: set dim={dim}"
            )

    def inputs(self, record: Any, images: Tensor) -> tuple[Any, ...]:
        """Images, quantized features, then what the inner discriminator asks for."""
        if record.quantized is None:
            raise ValueError("joint looks at quantized features, and without a tokenizer there are none: take pair")
        images, *others = self.inner_inputs(record, images)
        return (images, record.quantized.features, *others)

    def forward(self, images: Tensor, features: Tensor, *others: Any) -> Judgement:
        """Images `(B, C, H, W)`, features `(B, dim, h, w)`."""
        above = F.interpolate(self.mix(features), size=images.shape[-2:], mode="nearest")
        judgement: Judgement = self.inner(torch.cat([images, above.to(images.dtype)], dim=1), *others)
        return judgement
