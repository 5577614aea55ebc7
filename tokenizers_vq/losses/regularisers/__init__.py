"""Regularisers of the discriminator. One a file; their configs form a union on `kind`."""

from __future__ import annotations

from tokenizers_vq.losses.regularisers.base import Regulariser
from tokenizers_vq.losses.regularisers.gradient_penalty import GradientPenalty, GradientPenaltyConfig
from tokenizers_vq.losses.regularisers.historical_averaging import HistoricalAveraging, HistoricalAveragingConfig
from tokenizers_vq.losses.regularisers.lecam import LeCam, LeCamConfig
from tokenizers_vq.losses.regularisers.matching_aware import MatchingAware, MatchingAwareConfig
from tokenizers_vq.losses.regularisers.orthogonal import Orthogonal, OrthogonalConfig
from tokenizers_vq.losses.regularisers.r1 import R1, R2, R1Config, R2Config
from tokenizers_vq.losses.regularisers.weight_clipping import WeightClipping, WeightClippingConfig

__all__ = [
    "R1",
    "R2",
    "GradientPenalty",
    "GradientPenaltyConfig",
    "HistoricalAveraging",
    "HistoricalAveragingConfig",
    "LeCam",
    "LeCamConfig",
    "MatchingAware",
    "MatchingAwareConfig",
    "Orthogonal",
    "OrthogonalConfig",
    "R1Config",
    "R2Config",
    "Regulariser",
    "WeightClipping",
    "WeightClippingConfig",
]
