"""WGAN-GP's gradient penalty (Gulrajani et al., arXiv 1704.00028): slope 1 between images and reconstructions."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokenizers_vq.config import Config, Rate
from tokenizers_vq.discriminators.base import Discriminator, Judgement
from tokenizers_vq.losses.objectives import Objective
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.regularisers.base import Every, Regulariser
from tokenizers_vq.losses.regularisers.slopes import check_unmixed, slopes


class GradientPenaltyConfig(Config):
    """Gradient penalty between images and reconstructions (Gulrajani et al., arXiv 1704.00028, eq. 3)."""

    kind: Literal["gradient_penalty"] = "gradient_penalty"
    weight: Rate = 10.0
    """lambda"""
    every: Every = 1
    target: float = Field(default=1.0, ge=0)
    """the length that the gradient shall have; 0 makes it a penalty on any slope"""

    def build(self, discriminator: Discriminator, objective: Objective) -> GradientPenalty:
        check_unmixed(discriminator, self.kind)
        return GradientPenalty(**self.arguments())


class GradientPenalty(Regulariser):
    """`mean over images of (|d D(x) / d x| - target)^2` at `x = a image + (1 - a) reconstruction`, a uniform in [0, 1].

    D(x) is what the objective averages: the mean of an image's logits. One `a` an image is drawn at each call.
    """

    name = "gradient_penalty"

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        config = GradientPenaltyConfig(**fields)
        self.weight, self.every, self.target = config.weight, config.every, config.target

    def forward(self, record: Record, discriminator: Discriminator, real: Judgement, fake: Judgement) -> Tensor:
        images, fakes = record.images.float(), record.reconstructions.detach().float()
        share = torch.rand(len(images), 1, 1, 1, device=images.device)
        between = slopes(discriminator, record, share * images + (1 - share) * fakes, averaged=True)
        lengths = torch.linalg.vector_norm(between.flatten(1), dim=1)
        return (lengths - self.target).square().mean()
