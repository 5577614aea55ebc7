"""What a discriminator gives, and the contract that losses and discriminators meet in."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.func import functional_call


class Judgement(NamedTuple):
    """A discriminator's opinion of one batch."""

    logits: list[Tensor]
    """one tensor a scale or head, `(B, ...)`; larger is more real"""
    features: list[Tensor]
    """activations, shallow first, for feature matching"""
    losses: dict[str, Tensor]
    """scalars that the discriminator's own loss adds at weight 1"""


class Discriminator(nn.Module):
    """Images `(B, C, H, W)` in [-1, 1] -> `Judgement`."""

    def inputs(self, record: Any, images: Tensor) -> tuple[Any, ...]:
        """What `forward` takes for `images`, real or reconstructed, of one micro-batch's `Record`."""
        return (images,)

    def check(self, height: int, width: int) -> None:
        """Raises `ValueError` for images of a size that it cannot judge."""

    @abstractmethod
    def forward(self, *inputs: Any) -> Judgement:
        """Judge one batch."""


def judge(discriminator: Discriminator, record: Any, images: Tensor, *, frozen: bool) -> Judgement:
    """The discriminator's judgement of `images`, in its present mode, leaving its buffers as they are.

    `frozen` leaves its parameters out of the graph too: older torch caches the casts that autocast makes of them under
    `no_grad`, and the discriminator's own step would meet these and get no gradient.
    """
    state = {name: buffer.clone() for name, buffer in discriminator.named_buffers()}
    if frozen:
        state |= {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    return functional_call(discriminator, state, discriminator.inputs(record, images))
