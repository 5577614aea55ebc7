"""R1 and R2 gradient penalties (Mescheder et al., arXiv 1801.04406): no slope at the images, or at their fakes."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from tokenizers_vq.config import Config, Rate
from tokenizers_vq.discriminators.base import Discriminator, Judgement
from tokenizers_vq.losses.objectives import Objective
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.regularisers.base import Every, Regulariser
from tokenizers_vq.losses.regularisers.slopes import check_unmixed, slopes


class R1Config(Config):
    """R1 gradient penalty at the real images (Mescheder et al., arXiv 1801.04406)."""

    kind: Literal["r1"] = "r1"
    weight: Rate = 10.0
    """gamma: the loss is gamma / 2 times the mean squared norm of the logits' gradient"""
    every: Every = 16

    def build(self, discriminator: Discriminator, objective: Objective) -> R1:
        check_unmixed(discriminator, self.kind)
        return R1(**self.arguments())


class R1(Regulariser):
    """`mean over images of |d (sum of logits) / d image|^2 / 2`, by a double backward in float32."""

    name = "r1"

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        config = R1Config(**fields)
        self.weight, self.every = config.weight, config.every

    def forward(self, record: Record, discriminator: Discriminator, real: Judgement, fake: Judgement) -> Tensor:
        return 0.5 * _squared_norm(slopes(discriminator, record, record.images, averaged=False))


class R2Config(Config):
    """R2 gradient penalty at the reconstructions (Mescheder et al., arXiv 1801.04406)."""

    kind: Literal["r2"] = "r2"
    weight: Rate = 10.0
    """gamma: the loss is gamma / 2 times the mean squared norm of the logits' gradient"""
    every: Every = 16

    def build(self, discriminator: Discriminator, objective: Objective) -> R2:
        check_unmixed(discriminator, self.kind)
        return R2(**self.arguments())


class R2(Regulariser):
    """`R1`, with the reconstructions in the images' place."""

    name = "r2"

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        config = R2Config(**fields)
        self.weight, self.every = config.weight, config.every

    def forward(self, record: Record, discriminator: Discriminator, real: Judgement, fake: Judgement) -> Tensor:
        return 0.5 * _squared_norm(slopes(discriminator, record, record.reconstructions, averaged=False))


def _squared_norm(slopes: Tensor) -> Tensor:
    """`(B, C, H, W)` -> the mean over images."""
    return slopes.square().flatten(1).sum(dim=1).mean()
