"""The contract of a regulariser of the discriminator."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from tokenizers_vq.batch import Batch
from tokenizers_vq.config import Rate
from tokenizers_vq.discriminators.base import Discriminator, Judgement
from tokenizers_vq.losses.record import Record

Every = Annotated[int, Field(ge=1, description="computed at each `every`-th step, scaled by it")]


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
        """float32 scalar, unweighted; `discriminator` is the eager one, `real` and `fake` its step's judgements.

        A value without gradient is a figure for the log alone.
        """

    def after_step(self, discriminator: Discriminator) -> None:
        """Called after the discriminator's optimizer step."""
