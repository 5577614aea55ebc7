"""Historical averaging (Salimans et al., arXiv 1606.03498): weights that circle are drawn to the middle."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from tokenizers_vq.config import Config, Rate
from tokenizers_vq.discriminators.base import Discriminator, Judgement
from tokenizers_vq.losses.objectives import Objective
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.regularisers.base import Every, Regulariser


class HistoricalAveragingConfig(Config):
    """Distance of the weights to the mean of all their past values (Salimans et al., arXiv 1606.03498, section 3.3)."""

    kind: Literal["historical_averaging"] = "historical_averaging"
    weight: Rate = 1e-3
    """of the squared distance"""
    every: Every = 1

    def build(self, discriminator: Discriminator, objective: Objective) -> HistoricalAveraging:
        return HistoricalAveraging(sum(part.numel() for part in discriminator.trained()), **self.arguments())


class HistoricalAveraging(Regulariser):
    """`|theta - mean of theta after all steps so far|^2` of a discriminator's `size` trained numbers; 0 before one."""

    name = "historical_averaging"
    average: Tensor
    steps: Tensor

    def __init__(self, size: int, **fields: Any) -> None:
        super().__init__()
        config = HistoricalAveragingConfig(**fields)
        self.weight, self.every = config.weight, config.every
        self.register_buffer("average", torch.zeros(size))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, record: Record, discriminator: Discriminator, real: Judgement, fake: Judgement) -> Tensor:
        distance = (parameters_to_vector(discriminator.trained()).float() - self.average).square().sum()
        return torch.where(self.steps > 0, distance, 0 * distance)

    @torch.no_grad()
    def after_step(self, discriminator: Discriminator) -> None:
        self.steps.add_(1)
        self.average.lerp_(parameters_to_vector(discriminator.trained()).float(), 1 / self.steps)
