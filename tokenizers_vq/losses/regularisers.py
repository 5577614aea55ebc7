"""Regularisers of the discriminator."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tokenizers_vq import distributed
from tokenizers_vq.batch import Batch
from tokenizers_vq.config import Config, Rate
from tokenizers_vq.discriminators.base import Discriminator, Judgement, judge
from tokenizers_vq.losses.objectives import Objective
from tokenizers_vq.losses.record import Record


class Regulariser(nn.Module):
    """A term of the discriminator's loss. The step adds `weight * every * forward(...)` at every `every`-th step.

    Its config builds it for a discriminator and an objective, and refuses those with which it cannot stand. State lives
    in buffers.
    """

    name: str
    """as the log calls it"""
    weight: Rate
    every: int
    """lazy regularisation (Karras et al., arXiv 1912.04958): computed at each `every`-th step, scaled by it"""

    def check(self, batch: Batch) -> None:
        """Raises `ValueError`, one line, for labels or captions that it cannot take. Asked before step 0."""

    @abstractmethod
    def forward(self, record: Record, discriminator: Discriminator, real: Judgement, fake: Judgement) -> Tensor:
        """float32 scalar, unweighted; `discriminator` is the eager one, `real` and `fake` its step's judgements."""

    def after_step(self, discriminator: Discriminator) -> None:
        """Called after the discriminator's optimizer step."""


class R1Config(Config):
    """R1 gradient penalty at the real images (Mescheder et al., arXiv 1801.04406)."""

    kind: Literal["r1"] = "r1"
    weight: Rate = 10.0
    """gamma: the loss is gamma / 2 times the mean squared norm of the logits' gradient"""
    every: Annotated[int, Field(ge=1)] = 16
    """computed at each `every`-th step, scaled by it"""

    def build(self, discriminator: Discriminator, objective: Objective) -> R1:
        return R1(**self.arguments())


class R1(Regulariser):
    """`mean over images of |d (sum of logits) / d image|^2 / 2`, by a double backward.

    With a batch norm the logits of one image depend on the others, which blurs the penalty: better none, or spectral.
    """

    name = "r1"

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        config = R1Config(**fields)
        self.weight, self.every = config.weight, config.every

    def forward(self, record: Record, discriminator: Discriminator, real: Judgement, fake: Judgement) -> Tensor:
        images = record.images.detach().requires_grad_()
        logits = judge(discriminator, record, images, frozen=False).logits
        total = torch.stack([scale.float().sum() for scale in logits]).sum()
        (gradient,) = torch.autograd.grad(total, images, create_graph=True)
        return 0.5 * gradient.float().square().flatten(1).sum(dim=1).mean()


class LeCamConfig(Config):
    """LeCam regularisation towards moving averages of the logits (Tseng et al., arXiv 2104.03310)."""

    kind: Literal["lecam"] = "lecam"
    weight: Rate = 0.001
    """of the squared distances"""
    every: Annotated[int, Field(ge=1)] = 1
    """computed at each `every`-th step, scaled by it"""
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
