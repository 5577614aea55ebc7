"""A caption as condition of any discriminator: is it real, and what this text says? (Reed et al., arXiv 1605.05396)"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tokenizers_vq.batch import Batch, check_captions
from tokenizers_vq.config import Config
from tokenizers_vq.discriminators.base import Judgement, Wrapper
from tokenizers_vq.discriminators.drawn import generators
from tokenizers_vq.discriminators.layers import Width
from tokenizers_vq.discriminators.projection import projected
from tokenizers_vq.networks.ngrams import NgramBag, byte_rows

if TYPE_CHECKING:
    from tokenizers_vq.discriminators import DiscriminatorConfig


class TextConfig(Config):
    """A vector of the caption, whose product with the inner discriminator's pooled features joins all its logits.

    The caption is read as a bag of pieces of its bytes, which is trained with the discriminator.
    """

    kind: Literal["text"] = "text"
    discriminator: DiscriminatorConfig
    """the one that tells images from reconstructions"""
    length: Annotated[int, Field(ge=1, le=65536)] = 256
    """bytes of UTF-8 that are read; longer captions are cut"""
    longest: Annotated[int, Field(ge=1, le=16)] = 4
    """bytes of the longest pieces"""
    buckets: Annotated[int, Field(ge=1, le=2**24)] = 8192
    """vectors of the table in which pieces are found by their hash"""
    width: Width = 64
    """length of these vectors"""

    def build(self, channels: int = 3, image_size: tuple[int, int] = (256, 256)) -> Text:
        return Text(channels, image_size, **self.arguments())


class Text(Wrapper):
    """`logits + <vector of the caption, mean of the last features over positions>`, as `projection` has it of classes.

    Of several captions one is drawn, by the image's key and the step, for the image and its reconstruction alike.
    """

    def __init__(self, channels: int = 3, image_size: tuple[int, int] = (256, 256), **fields: Any) -> None:
        super().__init__(TextConfig(**fields), channels, image_size)
        self.bag = NgramBag(self.config.width, self.config.longest, self.config.buckets)
        self.mix = nn.Linear(self.config.width, self.feature_width, bias=False)
        # As long as a row of a linear layer: the inner one's logits are not drowned.
        nn.init.normal_(self.mix.weight, std=(self.config.width * self.feature_width) ** -0.5)

    def check(self, batch: Batch) -> None:
        super().check(batch)
        check_captions(batch.captions, "adversary.discriminator: text")

    def inputs(self, record: Any, images: Tensor) -> tuple[Any, ...]:
        """Images, bytes of captions `(B, length)`, then what the inner discriminator asks for."""
        images, *others = self.inner_inputs(record, images)
        rows = record.once(("text", self.config.length), lambda: _read(record, self.config.length))
        return (images, rows, *others)

    def forward(self, images: Tensor, rows: Tensor, *others: Any) -> Judgement:
        """Images `(B, C, H, W)`, bytes of captions `(B, length)`."""
        return projected(self.inner(images, *others), self.mix(self.bag(rows)))


def _read(record: Any, length: int) -> Tensor:
    # Data may be captioned here and not there: the first batch says nothing of the others.
    every = check_captions(record.batch.captions, "adversary.discriminator: text")
    draws = [float(torch.rand((), generator=generator)) for generator in generators(record, " caption")]
    texts = [captions[int(draw * len(captions))] for captions, draw in zip(every, draws, strict=True)]
    return byte_rows(texts, length).to(record.images.device)
