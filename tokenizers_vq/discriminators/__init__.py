"""Discriminators. One a file; their configs form a union on `kind`, and build for channels and a size of image.

A wrapper's config holds one of the union as its `discriminator`, another wrapper's too.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import Field

import tokenizers_vq._torchvision  # noqa: F401  (before anything that imports torchvision)
from tokenizers_vq.discriminators.attention import AttentionConfig
from tokenizers_vq.discriminators.augmented import AugmentedConfig
from tokenizers_vq.discriminators.bottleneck import BottleneckConfig
from tokenizers_vq.discriminators.class_head import ClassHeadConfig
from tokenizers_vq.discriminators.dcgan import DCGANConfig
from tokenizers_vq.discriminators.joint import JointConfig
from tokenizers_vq.discriminators.minibatch import MinibatchConfig
from tokenizers_vq.discriminators.multiscale import MultiscaleConfig
from tokenizers_vq.discriminators.pair import PairConfig
from tokenizers_vq.discriminators.patchgan import PatchGANConfig
from tokenizers_vq.discriminators.projection import ProjectionConfig
from tokenizers_vq.discriminators.several import SeveralConfig
from tokenizers_vq.discriminators.stylegan2 import StyleGAN2Config
from tokenizers_vq.discriminators.text import TextConfig
from tokenizers_vq.discriminators.unet import UNetConfig
from tokenizers_vq.discriminators.vision_aided import VisionAidedConfig

DiscriminatorConfig = Annotated[
    PatchGANConfig
    | StyleGAN2Config
    | DCGANConfig
    | AttentionConfig
    | MultiscaleConfig
    | UNetConfig
    | VisionAidedConfig
    | PairConfig
    | JointConfig
    | ProjectionConfig
    | TextConfig
    | ClassHeadConfig
    | BottleneckConfig
    | MinibatchConfig
    | AugmentedConfig
    | SeveralConfig,
    Field(discriminator="kind"),
]


def complete(union: Any) -> None:
    """Wrappers stand in the union that their own field names, so that their configs are whole only now."""
    for config in get_args(get_args(union)[0]):
        config.model_rebuild(_types_namespace={"DiscriminatorConfig": union})


complete(DiscriminatorConfig)
