"""Feature matching (Salimans et al., arXiv 1606.03498, section 3.1): batches that the discriminator sees alike."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from tokenizers_vq import distributed
from tokenizers_vq.config import Config, Rate
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.terms import Term
from tokenizers_vq.tokenizer import Tokenizer


class FeatureMatchingConfig(Config):
    """Distance of the discriminator's mean features of images and of reconstructions; needs an `adversary`."""

    kind: Literal["feature_matching"] = "feature_matching"
    weight: Rate = 1.0
    """weight, or a schedule of it"""

    def build(self, tokenizer: Tokenizer | None = None) -> FeatureMatching:
        return FeatureMatching(**self.arguments())


class FeatureMatching(Term):
    """`mean over layers of mean (E f(x) - E f(y))^2`, E over the batches of all processes, which are of one size."""

    name = "feature_matching"

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.weight = FeatureMatchingConfig(**fields).weight

    def forward(self, record: Record) -> Tensor:
        """Raises `ValueError` where there is no discriminator, or one that gives no features."""
        layers = list(zip(record.real.features, record.fake.features, strict=True))
        if not layers:
            raise ValueError(
                "losses.feature_matching: this discriminator gives no features to match: take the loss out"
            )
        return torch.stack([(_expectation(real) - _expectation(fake)).square().mean() for real, fake in layers]).mean()


def _expectation(features: Tensor) -> Tensor:
    """`(B, ...)` -> float32 `(...)`."""
    return distributed.mean(features.float().mean(dim=0))
