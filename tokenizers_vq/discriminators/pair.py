"""pix2pix's pairs (Isola et al., arXiv 1611.07004): any discriminator told what the image was to look like."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tokenizers_vq.batch import Batch
from tokenizers_vq.config import Config
from tokenizers_vq.discriminators.base import Discriminator, Judgement, Wrapper, check_channels, inside

if TYPE_CHECKING:
    from tokenizers_vq.discriminators import DiscriminatorConfig


class PairConfig(Config):
    """The inner discriminator sees each image, real or reconstructed, above a blurred copy of the real one.

    Beside the plain image it would win by comparing the two; the blur leaves what the tokenizer's grid can hold.
    """

    kind: Literal["pair"] = "pair"
    discriminator: DiscriminatorConfig
    """the one that sees both, of twice the channels"""
    blur: Annotated[float, Field(ge=0, le=1024)] | None = None
    """pixels over which the copy is blurred, twice the Gaussian's deviation; null = the tokenizer's stride, 0 = none"""

    def build(self, channels: int = 3, image_size: tuple[int, int] = (256, 256)) -> Pair:
        return Pair(channels, image_size, **self.arguments())


class Pair(Wrapper):
    """Images `(B, C, H, W)` -> the inner discriminator's judgement of `(B, 2 C, H, W)`."""

    def __init__(self, channels: int = 3, image_size: tuple[int, int] = (256, 256), **fields: Any) -> None:
        Discriminator.__init__(self, PairConfig(**fields), channels, image_size)
        with inside("discriminator"):
            self.inner = self.config.discriminator.build(2 * channels, image_size)
        self.feature_width = self.inner.feature_width

    def check(self, batch: Batch) -> None:
        check_channels(self, batch)
        with inside("discriminator"):
            self.inner.check(batch._replace(images=torch.cat([batch.images, batch.images], dim=1)))

    def inputs(self, record: Any, images: Tensor) -> tuple[Any, ...]:
        """Images, the blurred real ones, then what the inner discriminator asks for."""
        pixels = self._pixels(record)
        condition = record.once(("pair", pixels), lambda: blurred(record.images.detach(), pixels))
        _, *others = self.inner_inputs(record, images)
        return (images, condition, *others)

    def _pixels(self, record: Any) -> float:
        if self.config.blur is not None:
            return float(self.config.blur)
        if record.tokenizer is None:
            raise ValueError("pair without a tokenizer has no stride to blur by: give its `blur`, in pixels")
        finest = max(math.prod(grid) for grid in record.tokenizer.code_layout().grids)
        return math.sqrt(math.prod(record.tokenizer.config.size) / finest)

    def forward(self, images: Tensor, condition: Tensor, *others: Any) -> Judgement:
        """Images and conditions `(B, C, H, W)`."""
        return self.inner(torch.cat([images, condition.to(images.dtype)], dim=1), *others)


def blurred(images: Tensor, pixels: float) -> Tensor:
    """`(B, C, H, W)` under a Gaussian of deviation `pixels / 2`, cut off at three of them; edges are repeated."""
    if pixels == 0:
        return images
    radius = math.ceil(1.5 * pixels)
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-2 * (offsets / pixels).square())
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    for axis, shape in ((3, kernel), (2, kernel.mT)):
        around = (radius, radius, 0, 0) if axis == 3 else (0, 0, radius, radius)
        images = F.conv2d(F.pad(images, around, mode="replicate"), shape, groups=images.shape[1])
    return images
