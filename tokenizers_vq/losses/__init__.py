"""Losses: pure functions of images, and the terms of a recipe that call them. Their configs form unions on `kind`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

import tokenizers_vq._torchvision  # noqa: F401  (before anything that imports torchvision)
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
from tokenizers_vq.losses.terms import L1Config, L2Config

TermConfig = Annotated[
    L1Config | L2Config | LogitLaplaceConfig | LpipsConfig | PerceptualConfig | ProxyCodesConfig,
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
