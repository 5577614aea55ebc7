"""Losses: pure functions of images, and the terms of a recipe that call them. Their configs form unions on `kind`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

import tokenizers_vq._torchvision  # noqa: F401  (before anything that imports torchvision)
from tokenizers_vq.losses.attribute_reversal import AttributeReversalConfig
from tokenizers_vq.losses.classifier_logits import ClassifierLogitsConfig
from tokenizers_vq.losses.code_recovery import CodeRecoveryConfig
from tokenizers_vq.losses.feature_alignment import FeatureAlignmentConfig
from tokenizers_vq.losses.feature_matching import FeatureMatchingConfig
from tokenizers_vq.losses.focal_frequency import FocalFrequencyConfig
from tokenizers_vq.losses.gram import GramConfig
from tokenizers_vq.losses.logit_laplace import LogitLaplaceConfig
from tokenizers_vq.losses.objectives import (
    Hinge,
    LeastSquares,
    Minimax,
    NonSaturating,
    RelativisticAverage,
    Wasserstein,
)
from tokenizers_vq.losses.perceptual import LpipsConfig, PerceptualConfig
from tokenizers_vq.losses.proxy_codes import ProxyCodesConfig
from tokenizers_vq.losses.regularisers import (
    GradientPenaltyConfig,
    HistoricalAveragingConfig,
    LeCamConfig,
    MatchingAwareConfig,
    OrthogonalConfig,
    R1Config,
    R2Config,
    WeightClippingConfig,
)
from tokenizers_vq.losses.terms import HuberConfig, L1Config, L2Config

TermConfig = Annotated[
    L1Config
    | L2Config
    | HuberConfig
    | LogitLaplaceConfig
    | LpipsConfig
    | PerceptualConfig
    | GramConfig
    | ClassifierLogitsConfig
    | FocalFrequencyConfig
    | FeatureMatchingConfig
    | CodeRecoveryConfig
    | FeatureAlignmentConfig
    | AttributeReversalConfig
    | ProxyCodesConfig,
    Field(discriminator="kind"),
]
ObjectiveConfig = Annotated[
    Hinge | NonSaturating | Minimax | LeastSquares | Wasserstein | RelativisticAverage, Field(discriminator="kind")
]
RegulariserConfig = Annotated[
    R1Config
    | R2Config
    | GradientPenaltyConfig
    | LeCamConfig
    | WeightClippingConfig
    | OrthogonalConfig
    | HistoricalAveragingConfig
    | MatchingAwareConfig,
    Field(discriminator="kind"),
]
