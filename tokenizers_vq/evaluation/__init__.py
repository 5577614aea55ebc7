"""Metrics, codebook usage and reports."""

import tokenizers_vq._torchvision  # noqa: F401  (before anything that imports torchvision)
