"""Pictures to a size, by torchvision v2: uint8 or float32 `(C, H, W)`, bicubic and antialiased."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import tokenizers_vq._torchvision  # noqa: F401  (before torchvision)

# isort: split
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

_LONG = 16  # from so many times the window's area on, the rest of the scaled picture is not computed


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """`(H, W)` of a size given as one number or two. Raises `ValueError` for others, and for sizes below 1."""
    try:
        height, width = np.broadcast_to(np.asarray(size), 2).tolist()
    except ValueError:
        height, width = None, None
    if not (isinstance(height, int) and isinstance(width, int)) or min(height, width) < 1:
        raise ValueError(f"an image size is one whole number or two (height, width), at least 1, got {size!r}")
    return height, width


def resize_center_crop(image: Tensor, size: int | tuple[int, int]) -> Tensor:
    """`(C, h, w)`, uint8 or float32 in [-1, 1], to `(C, *size)`: the preprocessing of evaluation and encoding.

    The shorter side goes to `size` (for two different sides: the smallest scale that covers them), bicubic and
    antialiased, smaller images enlarged; then the centre is cropped. An image of the right size is returned as it is.
    """
    height, width = pair(size)
    rows, columns = covering(image, height, width)
    return window(image, (rows, columns), ((rows - height) // 2, (columns - width) // 2), (height, width))


def covering(image: Tensor, height: int, width: int) -> tuple[int, int]:
    """Height and width of a `(C, h, w)` scaled by the smallest factor that covers `height` and `width`."""
    h, w = image.shape[1:]
    scale = max(height / h, width / w)
    return max(height, round(h * scale)), max(width, round(w * scale))


def window(image: Tensor, scaled: tuple[int, int], corner: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """`(C, h, w)` resized to `scaled`, and of that `size` pixels from `corner` (top, left) on.

    Of a very long picture only the window is computed: 1 x 8000 scaled to a height of 256 would be 2,048,000 wide.
    """
    (top, left), (height, width) = corner, size
    if scaled[0] * scaled[1] <= _LONG * height * width:
        return resize(image, *scaled)[:, top : top + height, left : left + width].contiguous()
    vertical, horizontal = image.shape[1] / scaled[0], image.shape[2] / scaled[1]
    box = (left * horizontal, top * vertical, (left + width) * horizontal, (top + height) * vertical)
    bands = []
    for band in image:  # Pillow takes windows of fractions of a pixel, and floats one band at a time
        picture = Image.fromarray(band.numpy()).resize((width, height), Image.Resampling.BICUBIC, box)
        bands.append(torch.from_numpy(np.array(picture)))
    resized = torch.stack(bands)
    return resized.clamp_(-1, 1) if resized.is_floating_point() else resized


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """`(..., C, h, w)` to `(..., C, height, width)`: bicubic, antialiased."""
    if tuple(image.shape[-2:]) == (height, width):
        return image
    resized = functional.resize(image, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)
    return resized.clamp_(-1, 1) if resized.is_floating_point() else resized  # bicubic overshoots
