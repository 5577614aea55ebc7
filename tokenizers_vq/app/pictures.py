"""Pictures that a person gives, within bounds, and pictures as the page shows them."""

from __future__ import annotations

import io

from PIL import Image
from torch import Tensor

from tokenizers_vq import images
from tokenizers_vq.evaluation.figures import display, enlarge
from tokenizers_vq.pictures import TooLarge

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
        raise ValueError("give a picture first: drop a file")
    try:
        return images.read(path, channels=channels, size=size, max_pixels=MAX_PIXELS)
    except TooLarge as error:
        raise ValueError(f"this picture is too large: {error.what}; the page takes {MAX_PIXELS:,} pixels") from None
    except images.BrokenImage as error:
        raise ValueError(
            f"this file is no picture that can be read ({error.reason}): give a PNG, JPEG, WebP or GIF"
        ) from None


def shown(image: Tensor, side: int = SHOWN) -> Image.Image:
    """`(C, H, W)` in [-1, 1] as a picture to look at: enlarged by a whole factor to about `side` pixels."""
    return Image.fromarray(enlarge(display(image[None])[0], side).numpy())


def opened(file: bytes, side: int = SHOWN) -> Image.Image:
    """A picture file, enlarged likewise."""
    with Image.open(io.BytesIO(file)) as picture:
        rgb = picture.convert("RGB")
    factor = max(1, round(side / max(rgb.size)))
    return rgb.resize((rgb.width * factor, rgb.height * factor), Image.Resampling.NEAREST)
