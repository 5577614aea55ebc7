"""Discriminators. One a file; their configs form a union on `kind`."""

import tokenizers_vq._torchvision  # noqa: F401  (before anything that imports torchvision)
