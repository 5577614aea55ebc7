"""Training: recipes, the step, the loop, checkpoints."""

import tokenizers_vq._torchvision  # noqa: F401  (before anything that imports torchvision)
