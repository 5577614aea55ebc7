"""Images from folders, files and the Hub, in a fixed and resumable order."""

import tokenizers_vq._torchvision  # noqa: F401  (before anything that imports torchvision)
from tokenizers_vq.data.config import DataConfig

__all__ = ["DataConfig"]
