"""Picture files, PIL, uint8 and [0, 1] floats to the package's images, float `(B, C, H, W)` in [-1, 1], and back."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokenizers_vq import checks
from tokenizers_vq.pictures import MAX_PIXELS as MAX_PIXELS
from tokenizers_vq.pictures import BrokenImage as BrokenImage
from tokenizers_vq.pixels import Range as Range
from tokenizers_vq.pixels import Source as Source
from tokenizers_vq.pixels import decode as decode
from tokenizers_vq.pixels import is_numbers

LIMIT = 1.5
"""largest magnitude that `check` lets pass: reconstructions and interpolation overshoot 1, [0, 255] is far beyond"""


def read(
    source: Source | Sequence[Any],
    channels: int = 3,
    range: Range | None = None,
    size: int | tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """A picture as float32 `(1, channels, H, W)` in [-1, 1], or several of one size as `(B, channels, H, W)`.

    `source` is a path, a file's bytes, an open file, a PIL image, or an array or integer tensor `(H, W)`, `(H, W, C)`
    or `(C, H, W)` (where both fit, the channels are taken to be last); `.npy` files hold such arrays. A list of these,
    or an array of four dimensions, gives a batch. EXIF rotation is applied, the transparency of a picture is laid on
    white (an array's fourth band is never taken for one), 16-bit grey keeps its depth, of an animation the first frame
    counts. `channels=1` gives grey (ITU-R 601), 3 gives RGB; any other number needs an array with that many channels.

    `range`: the values of black and white in arrays of any number type and in 16-bit files; beyond them is clipped.
    Unset: all of uint8 and uint16, and [0, 1] for floats (of tensors no floats: they may be images already).
    8-bit pictures have no other range than their own; 16-bit colour is read with 8 bits, as Pillow does.

    `size`: one side, or height and width: the shorter side is resized to it (bicubic, antialiased, small pictures
    enlarged) and the centre cropped, as evaluation and encoding do. Unset: the picture's own.

    `max_pixels`: larger files are refused before they are decoded. A pixel costs up to 12 bytes, so the bound is 1 GiB;
    formats whose decoders take more (WebP, AVIF, JPEG 2000, 16-bit) have to be smaller in proportion. At its own size
    the result alone takes 4 bytes a pixel and channel.

    Raises `FileNotFoundError` for a missing file, `BrokenImage` for one that is unreadable, too large, or holds NaN,
    `ValueError` for channels that the source cannot give, and for numbers that need a `range`.
    """
    several = _several(source)
    views = []
    for number, one in enumerate([source] if several is None else several):
        image = decode(one, channels, None if several is None else _name(one, f"picture {number}"), range, max_pixels)
        if size is not None:
            from tokenizers_vq.resizing import resize_center_crop

            image = resize_center_crop(image, size)
        views.append(image if image.is_floating_point() else from_uint8(image))
    if not views:
        raise ValueError("an empty list holds no pictures")
    sizes = sorted({f"{view.shape[1]} x {view.shape[2]}" for view in views})
    if len(sizes) > 1:
        raise ValueError(f"pictures of different sizes ({', '.join(sizes[:3])}) make no batch; give their size=")
    return torch.stack(views) if len(views) > 1 else views[0][None]


def _several(source: Any) -> Sequence[Any] | None:
    """The pictures of a list or of an array of four dimensions; None for a single one."""
    if isinstance(source, (list, tuple)):
        return None if is_numbers(source) else source
    return list(source) if isinstance(source, (np.ndarray, Tensor)) and source.ndim == 4 else None


def _name(source: Any, otherwise: str) -> str:
    return str(source) if isinstance(source, (str, os.PathLike)) else otherwise


def from_uint8(image: Tensor) -> Tensor:
    """uint8 `(B, C, H, W)` or `(C, H, W)`, 0..255, to float32 in [-1, 1]. Raises `ValueError` for another dtype."""
    if image.dtype != torch.uint8:
        raise ValueError(f"from_uint8 takes uint8, got {image.dtype}; images in [0, 1] go through images.from_float01")
    return image.to(torch.float32).div_(127.5).sub_(1)


def from_float01(image: Tensor) -> Tensor:
    """Floating values in [0, 1], any shape, to [-1, 1]. Raises `ValueError` for integers."""
    if not image.is_floating_point():
        raise ValueError(
            f"from_float01 takes floating values in [0, 1], got {image.dtype}; uint8 goes through images.from_uint8"
        )
    return image * 2 - 1


def to_uint8(image: Tensor) -> Tensor:
    """Floating values in [-1, 1], any shape, to uint8: clamped and rounded; inverse of `from_uint8`."""
    if not image.is_floating_point():
        raise ValueError(f"to_uint8 takes floating values in [-1, 1], got {image.dtype}")
    return ((image.detach().to(torch.float32).clamp(-1, 1) + 1) * 127.5).round_().to(torch.uint8)


def to_pil(image: Tensor) -> Image.Image:
    """A floating `(C, H, W)` or `(1, C, H, W)` in [-1, 1] as a PIL image, RGB for C = 3, grey for C = 1.

    Raises `ValueError` for other shapes and channel counts.
    """
    if image.ndim == 4 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 3:
        raise ValueError(f"to_pil takes one image (C, H, W), got shape {tuple(image.shape)}; index the batch first")
    if image.shape[0] not in (1, 3):
        raise ValueError(f"to_pil takes 1 or 3 channels, got {image.shape[0]}; choose some, for example image[:3]")
    pixels = to_uint8(image).cpu().permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def to_array(image: Tensor, range: Range = (0.0, 1.0)) -> np.ndarray:
    """A floating `(C, H, W)` in [-1, 1] as float32 `(H, W, C)`, clamped and mapped to `range`; inverse of `read`."""
    if image.ndim != 3 or not image.is_floating_point():
        raise ValueError(f"to_array takes one floating image (C, H, W), got {image.dtype} {tuple(image.shape)}")
    unit = (image.detach().double().cpu().clamp(-1, 1).permute(1, 2, 0) + 1) / 2
    return (unit * (range[1] - range[0]) + range[0]).float().numpy()


def check(images: Tensor, channels: int) -> None:
    """Refuse what is no batch of images `(B, channels, H, W)` in [-1, 1], with the call that converts it.

    Values may overshoot to `LIMIT` in magnitude; they are looked at in eager mode only. Warns once where all lie in
    [0, 1]. Raises `ValueError`.
    """
    if not isinstance(images, Tensor):
        raise ValueError(
            f"images must be a tensor (B, {channels}, H, W) in [-1, 1], got {type(images).__name__}; "
            "convert a path, PIL image or array with images.read(x)"
        )
    shape, expected = tuple(images.shape), f"images must be (B, {channels}, H, W)"
    if images.is_complex():
        raise ValueError(f"images must be floating in [-1, 1], got {images.dtype}: give its real part, x.real")
    if not images.is_floating_point():
        raise ValueError(f"images must be floating in [-1, 1], got {images.dtype}; {_way_from(images)}")
    if len(shape) == 3:
        raise ValueError(f"{expected}, got {shape}; add the batch dimension with x.unsqueeze(0)")
    if len(shape) != 4:
        raise ValueError(f"{expected}, got {len(shape)} dimensions: {shape}")
    if shape[1] != channels:
        if shape[3] in (1, 3, 4, channels):
            raise ValueError(f"{expected}, got channels last {shape}; use x.permute(0, 3, 1, 2)")
        raise ValueError(f"{expected} as the config's channels={channels} says, got {shape[1]} channels: {shape}")
    if images.numel() and not torch.compiler.is_compiling():
        _check_range(images.detach())


def _check_range(images: Tensor) -> None:
    low, high = images.aminmax()

    def refuse() -> None:
        least, most = float(low), float(high)
        if not (abs(least) < float("inf") and abs(most) < float("inf")):
            raise ValueError("images hold NaN or infinite values; find them with x.isfinite()")
        if least < -LIMIT or most > LIMIT:
            raise ValueError(
                f"images must lie in [-1, 1], got values from {least:.4g} to {most:.4g}; "
                "convert 0..255 with x / 127.5 - 1, [0, 1] with images.from_float01(x)"
            )
        _ask_for_the_range()

    checks.check((low >= -LIMIT) & (high <= LIMIT) & ~((low >= 0) & (high <= 1)), refuse)


def _way_from(images: Tensor) -> str:
    """The call that makes images of whole numbers."""
    if images.dtype == torch.uint8:
        return "convert 0..255 with images.from_uint8(x)"
    if images.dtype == torch.bool:
        return "convert them with images.from_float01(x.float())"
    wide = images.to(torch.float64)
    if images.dtype != torch.uint16 and images.numel() and wide.min() >= 0 and wide.max() <= 255:
        return "convert 0..255 with images.from_uint8(x.to(torch.uint8))"
    return "convert them with images.read(x, range=(black, white))"


@cache  # once a process: bright pictures may lie there rightly
def _ask_for_the_range() -> None:
    warnings.warn(
        "all values of these images lie in [0, 1], where [-1, 1] is expected: did you mean images * 2 - 1?",
        stacklevel=5,
    )
