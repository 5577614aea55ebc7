"""Weight clipping (Arjovsky et al., arXiv 1701.07875): bounds on the discriminator's slope by its weights."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokenizers_vq.config import Config
from tokenizers_vq.discriminators.base import Discriminator, Judgement
from tokenizers_vq.losses.objectives import Objective
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.regularisers.base import Every, Regulariser


class WeightClippingConfig(Config):
    """Weights of the discriminator are clipped after its steps (Arjovsky et al., arXiv 1701.07875, algorithm 1)."""

    kind: Literal["weight_clipping"] = "weight_clipping"
    limit: float = Field(default=0.01, gt=0)
    """c: every trained parameter is kept in [-c, c]"""
    every: Every = 1
    weight: ClassVar[float] = 1.0  # there is no loss to weigh

    def build(self, discriminator: Discriminator, objective: Objective) -> WeightClipping:
        return WeightClipping(**self.arguments())


class WeightClipping(Regulariser):
    """The share of the trained parameters that lie at or beyond the limit; after the step these are clipped to it."""

    name = "clipped"

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        config = WeightClippingConfig(**fields)
        self.weight, self.every, self.limit = config.weight, config.every, config.limit
        self._due = False  # from a forward to the end of its step

    @torch.no_grad()
    def forward(self, record: Record, discriminator: Discriminator, real: Judgement, fake: Judgement) -> Tensor:
        self._due = True
        trained = discriminator.trained()
        beyond = [(parameter.abs() >= self.limit).sum() for parameter in trained]
        return torch.stack(beyond).sum().float() / sum(parameter.numel() for parameter in trained)

    @torch.no_grad()
    def after_step(self, discriminator: Discriminator) -> None:
        if self._due:
            for parameter in discriminator.trained():
                parameter.clamp_(-self.limit, self.limit)
            self._due = False
