"""Discriminators. One a file; their configs form a union on `kind`, and build for channels and a size of image.

A wrapper's config holds one of the union as its `discriminator`, another wrapper's too.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import Field

import tokenizers_vq._torchvision  # noqa: F401  (before anything that imports torchvision)
from tokenizers_vq.discriminators.patchgan import PatchGANConfig
from tokenizers_vq.discriminators.stylegan2 import StyleGAN2Config

DiscriminatorConfig = Annotated[PatchGANConfig | StyleGAN2Config, Field(discriminator="kind")]


def complete(union: Any) -> None:
    """Wrappers stand in the union that their own field names, so that their configs are whole only now."""
    for config in get_args(get_args(union)[0]):
        config.model_rebuild(_types_namespace={"DiscriminatorConfig": union})


complete(DiscriminatorConfig)
