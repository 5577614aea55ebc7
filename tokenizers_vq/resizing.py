"""Pictures to a size, by torchvision v2: uint8 or float32 `(C, H, W)`, bicubic and antialiased."""

from __future__ import annotations

from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

import tokenizers_vq._torchvision  # noqa: F401  (before torchvision)


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """`(H, W)` of a size given as one number or two."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def resize_center_crop(image: Tensor, size: int | tuple[int, int]) -> Tensor:
    """`(C, h, w)`, uint8 or float32 in [-1, 1], to `(C, *size)`: the preprocessing of evaluation and encoding.

    The shorter side goes to `size` (for two different sides: the smallest scale that covers them), bicubic and
    antialiased, smaller images enlarged; then the centre is cropped. An image of the right size is returned as it is.
    """
    height, width = pair(size)
    image = cover(image, height, width)
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width].contiguous()


def cover(image: Tensor, height: int, width: int) -> Tensor:
    """`(C, h, w)` scaled by the smallest factor that covers `height` and `width`."""
    h, w = image.shape[1:]
    scale = max(height / h, width / w)
    return resize(image, max(height, round(h * scale)), max(width, round(w * scale)))


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """`(C, h, w)` to `(C, height, width)`."""
    if tuple(image.shape[1:]) == (height, width):
        return image
    resized = functional.resize(image, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)
    return resized.clamp_(-1, 1) if resized.is_floating_point() else resized  # bicubic overshoots
