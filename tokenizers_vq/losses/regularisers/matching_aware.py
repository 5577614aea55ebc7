"""Matching-aware loss (Reed et al., arXiv 1605.05396; GigaGAN, Kang et al., arXiv 2303.05511): a wrong pair is fake."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from tokenizers_vq.batch import Batch
from tokenizers_vq.config import Config, ConfigError, Rate
from tokenizers_vq.discriminators.base import Discriminator, Judgement, ask
from tokenizers_vq.losses.objectives import Objective
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.regularisers.base import Every, Regulariser


class MatchingAwareConfig(Config):
    """An image with the label, caption or code of another is fake: a discriminator must look at its condition."""

    kind: Literal["matching_aware"] = "matching_aware"
    weight: Rate = 1.0
    """of the objective with these in the place of reconstructions"""
    every: Every = 1

    def build(self, discriminator: Discriminator, objective: Objective) -> MatchingAware:
        if not discriminator.conditional:
            raise ConfigError(
                ("adversary", "discriminator"),
                f"matching_aware gives images the condition of others, and {discriminator.config.kind} looks at none: "
                "take it out of adversary.regularisers, or choose a discriminator with a condition",
            )
        return MatchingAware(objective, **self.arguments())


class MatchingAware(Regulariser):
    """The objective's loss of images with their own condition, and of the same with that of the image before.

    An image whose neighbour has the same condition, such as the same label, is not a wrong pair and is left out; where
    all have the same, the value is 0. Conditions go round within a micro-batch of a process.
    """

    name = "matching_aware"

    def __init__(self, objective: Objective, **fields: Any) -> None:
        super().__init__()
        config = MatchingAwareConfig(**fields)
        self.objective = objective
        self.weight, self.every = config.weight, config.every

    def check(self, batch: Batch) -> None:
        """One image has no other whose condition it could be given."""
        if len(batch.images) < 2:
            raise ValueError(
                "adversary.regularisers: matching_aware needs two images a micro-batch, of which each gets the other's "
                "condition: raise batch_size, or lower accumulate"
            )

    def forward(self, record: Record, discriminator: Discriminator, real: Judgement, fake: Judgement) -> Tensor:
        device, order = record.images.device, torch.arange(len(record.images), device=record.images.device)
        # What inputs draw (augmentations, one of several captions) is the same for both, and tells no pairs apart.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            own = discriminator.inputs(record.taken(order), record.images)
        others = record.taken(order.roll(1))
        others.batch = others.batch._replace(keys=record.batch.keys)  # by which they are drawn
        wrong = discriminator.inputs(others, record.images)
        differs = _differing(own, wrong, len(order)).to(device)
        logits = ask(discriminator, wrong, frozen=False).logits
        if not differs.any():
            return 0 * torch.stack([scale.float().sum() for scale in logits]).sum()
        return self.objective.discriminator(real, Judgement([scale[differs] for scale in logits], [], {}))


def _differing(own: Any, wrong: Any, count: int) -> Tensor:
    """`(B,)`: whether anything that the discriminator is given of an image differs. Tuples hold more of it."""
    differs = torch.zeros(count, dtype=torch.bool)
    if isinstance(own, tuple):
        for a, b in zip(own, wrong, strict=True):
            differs |= _differing(a, b, count)
    elif isinstance(own, Tensor):
        differs |= (own != wrong).reshape(count, -1).any(1).cpu()
    elif isinstance(own, list):
        differs |= torch.tensor([a != b for a, b in zip(own, wrong, strict=True)])
    return differs
