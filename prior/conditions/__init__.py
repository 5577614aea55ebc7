"""Conditions: what a prior is told beforehand. One a file; their configs form a union on `kind`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from prior.conditions.base import Condition, Context
from prior.conditions.classes import ClassCondition, ClassConfig
from prior.conditions.grids import GridsCondition, GridsConfig
from prior.conditions.image import ImageCondition, ImageConfig
from prior.conditions.nothing import NoCondition, NoneConfig
from prior.conditions.several import SeveralCondition, SeveralConfig, beside
from prior.conditions.text import TextCondition, TextConfig
from prior.conditions.text_encoder import TextEncoderCondition, TextEncoderConfig
from prior.conditions.tokens import TokensCondition, TokensConfig

ConditionConfig = Annotated[
    NoneConfig
    | ClassConfig
    | TextConfig
    | TextEncoderConfig
    | ImageConfig
    | GridsConfig
    | SeveralConfig
    | TokensConfig,
    Field(discriminator="kind"),
]

__all__ = [
    "ClassCondition",
    "ClassConfig",
    "Condition",
    "ConditionConfig",
    "Context",
    "GridsCondition",
    "GridsConfig",
    "ImageCondition",
    "ImageConfig",
    "NoCondition",
    "NoneConfig",
    "SeveralCondition",
    "SeveralConfig",
    "TextCondition",
    "TextConfig",
    "TextEncoderCondition",
    "TextEncoderConfig",
    "TokensCondition",
    "TokensConfig",
    "beside",
]
