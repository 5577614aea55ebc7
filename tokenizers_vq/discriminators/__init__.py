"""Discriminators. One a file; their configs form a union on `kind`."""

from __future__ import annotations

import tokenizers_vq._torchvision  # noqa: F401  (before anything that imports torchvision)
from tokenizers_vq.discriminators.patchgan import PatchGANConfig

DiscriminatorConfig = PatchGANConfig
