"""Pictures that a person gives, within bounds, and pictures as the page shows them."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from tokenizers_vq import images
from tokenizers_vq.evaluation.figures import display, enlarge

MAX_PIXELS = 25_000_000
"""of a picture that is dropped: 300 MB while it is read"""
MAX_BYTES = "30mb"
"""of its file"""
SHOWN = 512
"""pixels a side that small pictures are enlarged to, each pixel a square"""


def read(path: str | None, channels: int, size: int | tuple[int, int]) -> Tensor:
    """The picture of a file `(1, C, H, W)` in [-1, 1], cut to the middle and resized to `size`.

    Raises `ValueError`, one line, for no picture, one that cannot be read, or one beyond `MAX_PIXELS`.
    """
    if path is None:
        raise ValueError("give a picture first: drop a file, or click an example")
    try:
        with Image.open(path) as opened:  # reads its head alone
            width, height = opened.size
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"this picture has {width:,} x {height:,} pixels, and the page takes {MAX_PIXELS:,} at most: "
                "give a smaller one"
            )
    except Image.DecompressionBombError:
        raise ValueError(f"this picture is too large: the page takes {MAX_PIXELS:,} pixels at most") from None
    except (OSError, SyntaxError):
        raise ValueError("this file is no picture that can be read: give a PNG, JPEG, WebP or GIF") from None
    try:
        return images.read(path, channels=channels, size=size, max_pixels=MAX_PIXELS)
    except images.BrokenImage as error:
        raise ValueError(f"this picture cannot be read: {error.reason}") from None


def shown(image: Tensor, side: int = SHOWN) -> Image.Image:
    """`(C, H, W)` in [-1, 1] as a picture to look at: enlarged by a whole factor to about `side` pixels."""
    return Image.fromarray(enlarge(display(image[None])[0], side).numpy())


def opened(file: bytes, side: int = SHOWN) -> Image.Image:
    """A picture file, enlarged likewise."""
    with Image.open(io.BytesIO(file)) as picture:
        rgb = picture.convert("RGB")
    factor = max(1, round(side / max(rgb.size)))
    return rgb.resize((rgb.width * factor, rgb.height * factor), Image.Resampling.NEAREST)


def beside(pictures: Sequence[np.ndarray], gap: int = 4) -> Image.Image:
    """uint8 `(h, w, 3)` pictures of one size in a row."""
    height, width = pictures[0].shape[:2]
    row = Image.new("RGB", (len(pictures) * (width + gap) - gap, height), "white")
    for index, picture in enumerate(pictures):
        row.paste(Image.fromarray(picture), (index * (width + gap), 0))
    return row
