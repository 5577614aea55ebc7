"""Discriminators. One a file; their configs form a union on `kind`, and build for a size of image.

Each has `build(channels=3, image_size=(H, W))`; some take any size.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

import tokenizers_vq._torchvision  # noqa: F401  (before anything that imports torchvision)
from tokenizers_vq.discriminators.patchgan import PatchGANConfig
from tokenizers_vq.discriminators.stylegan2 import StyleGAN2Config

DiscriminatorConfig = Annotated[PatchGANConfig | StyleGAN2Config, Field(discriminator="kind")]
