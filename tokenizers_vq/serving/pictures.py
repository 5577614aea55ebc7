"""Pictures from and to requests."""

from __future__ import annotations

import base64
import binascii
import io

import numpy as np
from torch import Tensor

from tokenizers_vq import images
from tokenizers_vq.resizing import resize_center_crop
from tokenizers_vq.serving.limits import Refused


def content(text: str, name: str) -> bytes:
    """The bytes that base64 holds. Raises `Refused` (422), which calls them `name`."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, f"{name}: not base64 of a picture's file") from None


def view(data: bytes, name: str, channels: int, size: int | tuple[int, int], max_pixels: int) -> Tensor:
    """A file's bytes -> `(C, *size)` in [-1, 1], as evaluation and encoding see it.

    Raises `ValueError`: `TooLarge` before it is decoded, `BrokenImage`, or that it has other channels.
    """
    image = images.decode(data, channels, name, max_pixels=max_pixels)
    seen = resize_center_crop(image, size)
    return seen if seen.is_floating_point() else images.from_uint8(seen)


def file(image: Tensor, form: str) -> bytes:
    """`(C, H, W)` in [-1, 1] as a PNG, or as a `.npy` of float32 `(H, W, C)`.

    Raises `Refused` (422) for channels that no PNG has.
    """
    buffer = io.BytesIO()
    if form == "npy":
        np.save(buffer, image.permute(1, 2, 0).float().numpy())
    elif image.shape[0] in (1, 3):
        images.to_pil(image).save(buffer, format="PNG", compress_level=1)
    else:
        raise Refused(422, f"format: images of {image.shape[0]} channels are no PNG; give format=npy")
    return buffer.getvalue()


def text(data: bytes) -> str:
    """Bytes in base64."""
    return base64.b64encode(data).decode("ascii")
