"""Crops, resizing and flips by torchvision v2, on uint8 or float32 `(C, H, W)`.

All resizing is bicubic and antialiased. Nothing draws from a global generator: augmentation is a pure function of the
image, the config and a key.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

if TYPE_CHECKING:
    from tokenizers_vq.data.sources import DataConfig

PREPROCESSING = "shorter side to the image size (bicubic, antialiased, small images enlarged), centre crop"


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """`(H, W)` of a size given as one number or two."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def resize_center_crop(image: Tensor, size: int | tuple[int, int]) -> Tensor:
    """`(C, h, w)`, uint8 or float32 in [-1, 1], to `(C, *size)`: the preprocessing of evaluation and encoding.

    The shorter side goes to `size` (for two different sides: the smallest scale that covers them), bicubic and
    antialiased, smaller images enlarged; then the centre is cropped. An image of the right size is returned as it is.
    """
    height, width = pair(size)
    image = _cover(image, height, width)
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width].contiguous()


def _cover(image: Tensor, height: int, width: int) -> Tensor:
    h, w = image.shape[1:]
    scale = max(height / h, width / w)
    return _resize(image, max(height, round(h * scale)), max(width, round(w * scale)))


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    if tuple(image.shape[1:]) == (height, width):
        return image
    resized = functional.resize(image, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)
    return resized.clamp_(-1, 1) if resized.is_floating_point() else resized  # bicubic overshoots


def augment(image: Tensor, config: DataConfig, size: int | tuple[int, int], key: str) -> Tensor:
    """`(C, h, w)` to a training view `(C, *size)` by `config.crop` and `config.flip`, pure in its arguments.

    `key` names the draw, for example "seed/epoch/index"; the dtype stays.
    """
    draw = random.Random(key)  # seeded from text by sha512: the same on every machine and Python
    height, width = pair(size)
    if config.crop == "center":
        image = resize_center_crop(image, (height, width))
    elif config.crop == "random":
        image = _cover(image, height, width)
        top, left = (int(draw.random() * (room + 1)) for room in (image.shape[1] - height, image.shape[2] - width))
        image = image[:, top : top + height, left : left + width]
    else:
        top, left, h, w = _random_window(image.shape[1], image.shape[2], width / height, config, draw)
        image = _resize(image[:, top : top + h, left : left + w], height, width)
    if config.flip and draw.random() < 0.5:
        image = functional.horizontal_flip(image)
    return image.contiguous()


def _random_window(h: int, w: int, aspect: float, config: DataConfig, draw: random.Random) -> tuple[int, int, int, int]:
    """Top, left, height, width by the rule of Inception's crop (Szegedy et al. 2015), whose ratio is the output's."""
    for _ in range(10):
        area = h * w * draw.uniform(*config.scale)
        ratio = aspect * math.exp(draw.uniform(math.log(config.ratio[0]), math.log(config.ratio[1])))
        width, height = max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))
        if width <= w and height <= h:
            return int(draw.random() * (h - height + 1)), int(draw.random() * (w - width + 1)), height, width
    # No window fits (a very long image): the largest one of the output's ratio, at random along the long side.
    height, width = min(h, max(1, round(w / aspect))), min(w, max(1, round(h * aspect)))
    return int(draw.random() * (h - height + 1)), int(draw.random() * (w - width + 1)), height, width
