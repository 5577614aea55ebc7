"""What terms on a timm backbone share: their fields, and the features of its stages, computed once a step."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from tokenizers_vq.config import Config, ConfigError, Rate
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.terms import Term
from tokenizers_vq.networks.backbones import Backbone, three_channels

Index = Annotated[int, Field(ge=0)]
Bands = tuple[tuple[Index, Index, Index], ...]
"""triples of channels"""


class BackboneConfig(Config):
    """Fields of a term that shows images to a timm backbone."""

    weight: Rate = 1.0
    """weight, or a schedule of it"""
    backbone: str = "tf_efficientnet_lite1"
    """timm model with ImageNet weights; EfficientNet-Lite0 to 2 come as packages, without a download"""
    resize: Annotated[int, Field(ge=16)] | None = None
    """shorter side that the images are resized to (bilinear) for the backbone, which saw larger ones than 64 px"""
    bands: Bands | None = None
    """triples of channels to average over, for images of other than 1 or 3 channels"""


class StagesConfig(BackboneConfig):
    """Fields of a term that compares images at the stages of a timm backbone."""

    stages: Annotated[tuple[Index, ...], Field(min_length=1)] = (0, 1, 2, 3)
    """stages whose ends are compared, 0 = shallowest"""
    stage_weights: tuple[float, ...] | None = None
    """weight of each stage (default: equal)"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.stage_weights is not None and len(self.stage_weights) != len(self.stages):
            raise ConfigError(("stage_weights",), f"needs one weight for each of the stages {list(self.stages)}")
        return self


class StagesTerm(Term):
    """`mean over stages of w_s * distance_s(images, reconstructions)`.

    Terms of one backbone and the same stages, size and bands share its features, which are computed once a step.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.weight, self.bands, self.stages = config.weight, config.bands, config.stages
        self.resize = config.resize
        self.stage_weights = config.stage_weights or (1.0,) * len(config.stages)
        self.network = Backbone(config.backbone)

    @abstractmethod
    def distance(self, real: Tensor, fake: Tensor) -> Tensor:
        """Of two feature maps `(B, C, H, W)` of one stage, a float32 scalar."""

    def forward(self, record: Record) -> Tensor:
        key = ("stages", self.network.name, self.stages, self.resize, self.bands)
        real = record.once((*key, "images"), lambda: self._real(record.images))
        fake = record.once((*key, "reconstructions"), lambda: self._features(record.reconstructions))
        pairs = zip(self.stage_weights, real, fake, strict=True)
        return torch.stack([w * self.distance(a, b) for w, a, b in pairs]).mean()

    def _features(self, images: Tensor) -> list[Tensor]:
        return self.network.stages(prepared(images, self.bands, self.resize, self.name), self.stages)

    @torch.no_grad()
    def _real(self, images: Tensor) -> list[Tensor]:
        return self._features(images)


def prepared(images: Tensor, bands: Bands | None, resize: int | None, user: str) -> Tensor:
    """`(B, C, H, W)` -> `(G * B, 3, h, w)` for a backbone: triples of channels, the shorter side `resize` pixels."""
    images = three_channels(images, bands, user)
    if resize is None:
        return images
    scale = resize / min(images.shape[-2:])
    size = [round(side * scale) for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", antialias=scale < 1)
