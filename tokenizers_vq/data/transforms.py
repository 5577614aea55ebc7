"""Training views of pictures: crops, resizing and flips by torchvision v2, on uint8 or float32 `(C, H, W)`.

Nothing draws from a global generator: augmentation is a pure function of the
image, the config and a key.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from tokenizers_vq.config import nearest
from tokenizers_vq.resizing import covering, pair, resize, resize_center_crop, window

if TYPE_CHECKING:
    from tokenizers_vq.data.config import DataConfig

PREPROCESSING = "shorter side to the image size (bicubic, antialiased, small images enlarged), centre crop"


class Views(NamedTuple):
    """Ways of looking at one image when a data set is encoded."""

    rows: int
    preprocessing: str


_ROOM = 1.1
VIEWS = {
    "center": Views(1, PREPROCESSING),
    "flip": Views(2, f"{PREPROCESSING}; that and its mirror image"),
    "ten-crop": Views(
        10,
        PREPROCESSING.replace("to the", f"to {_ROOM} times the")
        + "; of that the corners and the centre, and their mirror images",
    ),
}
"""`ten-crop` is LlamaGen's (arXiv 2406.06525), whose `crop_range` is 1.1"""


def check_views(views: str) -> None:
    """Raises `ValueError` for a name that is not in `VIEWS`."""
    if views not in VIEWS:
        raise ValueError(f"no views '{views}'{nearest(views, VIEWS)}")


def size_for_views(size: int | tuple[int, int], views: str) -> int | tuple[int, int]:
    """What images are cropped to before `cut_views`."""
    if views != "ten-crop":
        return size
    height, width = pair(size)
    return int(height * _ROOM), int(width * _ROOM)


def cut_views(images: Tensor, size: int | tuple[int, int], views: str) -> Tensor:
    """`(B, C, *size_for_views)` -> `(B views, C, *size)`: an image's views follow each other, mirrored ones last."""
    if views == "center":
        return images
    if views == "flip":
        cut = images[:, None]
    else:
        cut = torch.stack(functional.five_crop(images, list(pair(size))), dim=1)
    return torch.cat([cut, cut.flip(-1)], dim=1).flatten(0, 1)


def augment(image: Tensor, config: DataConfig, size: int | tuple[int, int], key: str) -> Tensor:
    """`(C, h, w)` to a training view `(C, *size)` by `config.crop` and `config.flip`, pure in its arguments.

    `key` names the draw, for example "seed/epoch/index"; the dtype stays.
    """
    draw = random.Random(key)  # seeded from text by sha512: the same on every machine and Python
    height, width = pair(size)
    if config.crop == "center":
        image = resize_center_crop(image, (height, width))
    elif config.crop == "random":
        rows, columns = covering(image, height, width)
        top, left = (int(draw.random() * (room + 1)) for room in (rows - height, columns - width))
        image = window(image, (rows, columns), (top, left), (height, width))
    else:
        top, left, h, w = _random_window(image.shape[1], image.shape[2], width / height, config, draw)
        image = resize(image[:, top : top + h, left : left + w], height, width)
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
