"""LeCam regularisation (Tseng et al., arXiv 2104.03310): real and fake logits must not drift apart."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tokenizers_vq import distributed
from tokenizers_vq.config import Config, Rate
from tokenizers_vq.discriminators.base import Discriminator, Judgement
from tokenizers_vq.losses.objectives import Objective
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.regularisers.base import Every, Regulariser


class LeCamConfig(Config):
    """LeCam regularisation towards moving averages of the logits (Tseng et al., arXiv 2104.03310)."""

    kind: Literal["lecam"] = "lecam"
    weight: Rate = 0.001
    """of the squared distances"""
    every: Every = 1
    decay: float = Field(default=0.999, gt=0, lt=1)
    """of the averages"""
    compare: Literal["logits", "means"] = "logits"
    """with the averages: each logit, as the paper's code does, or the batch's mean, as TiTok's does"""

    def build(self, discriminator: Discriminator, objective: Objective) -> LeCam:
        return LeCam(**self.arguments())


class LeCam(Regulariser):
    """`mean relu(r - average of f)^2 + mean relu(average of r - f)^2`: real and fake logits must not drift apart.

    The averages begin at zero, take the batches of all processes, and move after the discriminator's step. Fields:
    `LeCamConfig`.
    """

    name = "lecam"
    real_average: Tensor
    fake_average: Tensor

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.config = config = LeCamConfig(**fields)
        self.weight, self.every = config.weight, config.every
        self.register_buffer("real_average", torch.zeros(()))
        self.register_buffer("fake_average", torch.zeros(()))
        self._seen: list[Tensor] = []

    def forward(self, record: Record, discriminator: Discriminator, real: Judgement, fake: Judgement) -> Tensor:
        reals, fakes = ([logits.float() for logits in judgement.logits] for judgement in (real, fake))
        means = torch.stack([torch.stack([scale.mean() for scale in side]).mean() for side in (reals, fakes)])
        means = distributed.mean(means)
        self._seen.append(means.detach())
        if self.config.compare == "means":
            reals, fakes = [means[0]], [means[1]]
        above = [F.relu(scale - self.fake_average).square().mean() for scale in reals]
        below = [F.relu(self.real_average - scale).square().mean() for scale in fakes]
        return torch.stack(above).mean() + torch.stack(below).mean()

    @torch.no_grad()
    def after_step(self, discriminator: Discriminator) -> None:
        if self._seen:
            seen = torch.stack(self._seen).mean(0)
            self.real_average.lerp_(seen[0], 1 - self.config.decay)
            self.fake_average.lerp_(seen[1], 1 - self.config.decay)
            self._seen.clear()
