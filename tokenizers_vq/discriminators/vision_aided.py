"""Vision-aided discriminator (Kumari et al., arXiv 2112.09130): trained heads on the features of a frozen backbone."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tokenizers_vq.config import Config
from tokenizers_vq.discriminators.base import Embedded, Split
from tokenizers_vq.discriminators.layers import Width

JUDGE = "tf_efficientnet_lite0"
"""what `tvq evaluate` measures the feature distance by"""


class VisionAidedConfig(Config):
    """A timm backbone with ImageNet weights, which stay as they are and are not saved, and a small head a stage.

    Published beside an ordinary discriminator and with augmentation: `several` and `augmented` do both.
    """

    kind: Literal["vision_aided"] = "vision_aided"
    backbone: str = "tf_efficientnet_lite1"
    """timm name; the backbone that judges the tokenizer afterwards is refused, which is tf_efficientnet_lite0"""
    stages: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (1, 2, 3)
    """stages of the backbone whose features are judged, 0 = the finest"""
    width: Width = 64
    """channels inside the heads"""

    def build(self, channels: int = 3, image_size: tuple[int, int] = (256, 256)) -> VisionAided:
        return VisionAided(channels, image_size, **self.arguments())


class VisionAided(Split):
    """Images `(B, 1 or 3, H, W)` -> logits `(B, 1, h, w)` of each stage, and its features.

    Raises `ValueError` for the judge's backbone, for stages that the backbone does not have, other channels, and images
    of which the last stage leaves nothing; `FileNotFoundError` where its weights are out of reach.
    """

    def __init__(self, channels: int = 3, image_size: tuple[int, int] = (256, 256), **fields: Any) -> None:
        from tokenizers_vq.networks.backbones import Backbone

        config = VisionAidedConfig(**fields)
        super().__init__(config, channels, image_size)
        if config.backbone.split(".")[0] == JUDGE:
            raise ValueError(
                f"adversary.discriminator.backbone: {config.backbone} is also the judge of `tvq evaluate`, which would "
                "praise what was trained on it: take another, such as tf_efficientnet_lite1"
            )
        if channels not in (1, 3):
            raise ValueError(
                f"vision_aided looks through a network of photographs, takes 1 or 3 channels, and gets {channels}: "
                "take another discriminator; inside pair and joint, which add channels, it cannot stand"
            )
        with torch.device("cpu"):  # its weights are there also where a discriminator is built without any
            self.backbone = Backbone(config.backbone)
        infos = self.backbone.model.feature_info
        if list(config.stages) != sorted(set(config.stages)) or config.stages[-1] >= len(infos):
            raise ValueError(
                f"adversary.discriminator.stages: backbone '{config.backbone}' has stages 0 to {len(infos) - 1}, "
                f"asked for in rising order; got {list(config.stages)}"
            )
        chosen = [infos[stage] for stage in config.stages]
        if min(image_size) < (smallest := chosen[-1]["reduction"]):
            height, width = image_size
            raise ValueError(
                f"vision_aided with stage {config.stages[-1]} needs images of at least {smallest}x{smallest}, got "
                f"{height}x{width}: take finer `stages` or enlarge `image_size`"
            )
        heads = [
            nn.Sequential(
                nn.Conv2d(info["num_chs"], config.width, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(config.width, 1, 1)
            )
            for info in chosen
        ]
        self.heads: Any = nn.ModuleList(heads)
        self.feature_width = chosen[-1]["num_chs"]
        self.embedding_widths = [config.width for _ in chosen]

    def embed(self, images: Tensor) -> Embedded:
        """Images `(B, 1 or 3, H, W)` in [-1, 1]."""
        rgb = images.expand(-1, 3, -1, -1) if self.channels == 1 else images
        features = self.backbone.stages(rgb, self.config.stages)
        return Embedded([head[:-1](f) for head, f in zip(self.heads, features, strict=True)], features)

    def decide(self, embeddings: list[Tensor]) -> list[Tensor]:
        return [head[-1](embedding) for head, embedding in zip(self.heads, embeddings, strict=True)]
