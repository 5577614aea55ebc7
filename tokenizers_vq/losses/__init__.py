"""Losses: pure functions of images, and the terms of a recipe that call them."""

import tokenizers_vq._torchvision  # noqa: F401  (before anything that imports torchvision)
