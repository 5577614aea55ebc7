"""Picture files, PIL, uint8 and [0, 1] floats to the package's images, float `(B, C, H, W)` in [-1, 1], and back."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

LIMIT = 1.5
"""largest magnitude that `check` lets pass: reconstructions and interpolation overshoot 1, [0, 255] is far beyond"""

_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_NPY = b"\x93NUMPY"
Range = tuple[float, float]
"""values of black and of white"""

_LUMA = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)  # ITU-R 601, which Pillow's "L" uses too


class BrokenImage(ValueError):  # noqa: N818 (names what is broken, not the act)
    """A file that is no readable picture: `name` is the file, `reason` what its decoder said."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, " ".join(reason.split())
        super().__init__(f"{self.name}: not a readable image: {self.reason}")

    def __reduce__(self) -> tuple[Any, ...]:  # pickled by loader processes
        return type(self), (self.name, self.reason)


def read(
    source: str | os.PathLike[str] | bytes | Image.Image | np.ndarray,
    channels: int = 3,
    range: Range | None = None,
    size: int | tuple[int, int] | None = None,
) -> Tensor:
    """A picture as float32 `(1, channels, H, W)` in [-1, 1].

    `source` is a path, a file's bytes, a PIL image, or an array `(H, W)`, `(H, W, C)` or `(C, H, W)` (where both fit,
    the channels are taken to be last); `.npy` files hold such arrays. EXIF rotation is applied, transparency is laid on
    white, 16-bit grey keeps its depth, of an animation the first frame counts. `channels=1` gives grey (ITU-R 601), 3
    gives RGB; any other number needs an array with that many channels.

    `range`: the values of black and white in arrays of any number type and in 16-bit files; beyond them is clipped.
    Unset: all of uint8 and uint16, and [0, 1] for floats. 8-bit pictures have no other range than their own;
    16-bit colour is read with 8 bits, as Pillow does.

    `size`: one side, or height and width: the shorter side is resized to it (bicubic, antialiased, small pictures
    enlarged) and the centre cropped, as evaluation and encoding do. Unset: the picture's own.

    Raises `FileNotFoundError` for a missing file, `BrokenImage` for an unreadable one, `ValueError` for channels that
    the source cannot give, and for numbers that need a `range`.
    """
    image = decode(source, channels, range=range)
    if size is not None:
        from tokenizers_vq.resizing import resize_center_crop

        image = resize_center_crop(image, size)
    return (image if image.is_floating_point() else from_uint8(image)).unsqueeze(0)


def decode(
    source: str | os.PathLike[str] | bytes | Image.Image | np.ndarray,
    channels: int = 3,
    name: str | None = None,
    range: Range | None = None,
) -> Tensor:
    """`read` without the last step: `(channels, H, W)`, uint8 where the source has 8 bits, else float32 in [-1, 1].

    `name` stands for the source in errors. Raises as `read` does.
    """
    if channels < 1:
        raise ValueError(f"channels must be at least 1, got {channels}")
    if isinstance(source, np.ndarray):
        return _from_array(source, channels, name or "array", range)
    if isinstance(source, Image.Image):
        return _from_pil(source, channels, name or getattr(source, "filename", "") or "PIL image", range)
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, head, opened = name or "bytes", bytes(source[:6]), io.BytesIO(source)
        return _from_file(opened, channels, name, range, head == _NPY)
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"no image file at {path}")
    with path.open("rb") as file:
        return _from_file(file, channels, name or str(path), range, path.suffix.lower() == ".npy")


def _from_file(file: Any, channels: int, name: str, range: Range | None, is_array: bool) -> Tensor:
    try:
        if is_array:
            array = np.load(file, allow_pickle=False)
        else:
            picture = Image.open(file)
            shallow = picture.mode not in (*_DEEP, "F") and any(";16" in str(tile[3]) for tile in picture.tile)
            picture.load()
    except Exception as error:  # decoders raise nearly anything on damaged bytes: OSError, SyntaxError, struct.error
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = "not a picture, or an unknown format" if unknown else str(error) or type(error).__name__
        raise BrokenImage(name, reason) from None
    if is_array:
        return _from_array(array, channels, name, range)
    if shallow and range is not None:
        raise ValueError(f"{name}: of 16-bit colour Pillow reads 8 bits, so no range fits it; store it as .npy")
    return _from_pil(picture, channels, name, range)


def _from_pil(picture: Image.Image, channels: int, name: str, range: Range | None) -> Tensor:
    if channels not in (1, 3):
        raise ValueError(
            f"{name}: a picture gives 1 or 3 channels, not {channels}; store it as .npy (H, W, {channels})"
        )
    try:
        if picture.getexif().get(0x0112, 1) != 1:
            picture = ImageOps.exif_transpose(picture)
        if picture.mode in _DEEP or picture.mode == "F":
            return _from_array(_deep(picture, name, range), channels, name, range)
        if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
            picture = picture.convert("LA") if picture.mode == "La" else picture
            rgba = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        picture = picture.convert("L" if channels == 1 else "RGB")
        pixels = torch.from_numpy(np.array(picture))
    except BrokenImage:
        raise
    except Exception as error:
        raise BrokenImage(name, str(error) or type(error).__name__) from None
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def _deep(picture: Image.Image, name: str, range: Range | None) -> np.ndarray:
    """The array behind a 16-bit, 32-bit or float grey picture: Pillow's own `convert` would clip it to 8 bits."""
    array = np.array(picture)
    if picture.mode == "F" or (picture.mode == "I" and range is not None):
        return array
    # "I" is what Pillow calls some 16-bit files, and every 32-bit one
    if picture.mode == "I" and (array.min(initial=0) < 0 or array.max(initial=0) > 65535):
        raise BrokenImage(name, "32-bit values beyond 0..65535; give their range=(low, high)")
    return array.astype(np.uint16)


def _from_array(array: np.ndarray, channels: int, name: str, range: Range | None) -> Tensor:
    array = _channels_last(array, channels, name)
    found = array.shape[2]
    if array.dtype == np.uint8 and range is None and found != channels and found in (2, 3, 4) and channels in (1, 3):
        mode, size = {2: "LA", 3: "RGB", 4: "RGBA"}[found], (array.shape[1], array.shape[0])
        return _from_pil(Image.frombytes(mode, size, np.ascontiguousarray(array).tobytes()), channels, name, None)
    pixels = torch.from_numpy(np.array(_plain(array, name, range))).permute(2, 0, 1).contiguous()
    if found in (2, 4) and channels in (1, 3):
        pixels = pixels[:-1] * (a := (pixels[-1:] + 1) / 2) + (1 - a)  # on white, which is 1
        found -= 1
    if found == 3 and channels == 1:
        return (pixels * _LUMA).sum(0, keepdim=True)
    if found == 1 and channels == 3:
        return pixels.repeat(3, 1, 1)
    if found != channels:
        raise ValueError(f"{name}: array of shape {array.shape} has {found} channels, {channels} are wanted")
    return pixels


def _channels_last(array: np.ndarray, channels: int, name: str) -> np.ndarray:
    """`(H, W, C)` of `(H, W)`, `(H, W, C)` or `(C, H, W)`."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or 0 in array.shape:
        raise BrokenImage(name, f"array of shape {array.shape}; expected (H, W), (H, W, C) or (C, H, W)")
    fit = (1, 2, 3, 4) if channels in (1, 3) else (channels,)  # grey, colour and alpha give grey and colour
    if array.shape[2] not in fit and array.shape[0] in fit:
        return np.moveaxis(array, 0, -1)
    return array


def _plain(array: np.ndarray, name: str, range: Range | None) -> np.ndarray:
    """uint8 as it is, everything else as float32 in [-1, 1]."""
    if range is not None:
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name}: cannot read {array.dtype} pixels; give integers or floats")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise BrokenImage(name, "NaN or infinite values")
        unit = (array.astype(np.float64) - range[0]) / (range[1] - range[0])
        return (unit * 2 - 1).clip(-1, 1).astype(np.float32)
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # both byte orders
        return (array.astype(np.float32) / 32767.5 - 1).astype(np.float32)
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            span = f"{low:.4g} to {high:.4g}"
            raise ValueError(
                f"{name}: floats are read as [0, 1], but values span {span}; give their range "
                "(data.range=[low, high], --range LOW HIGH, images.read(range=))"
            )
        return (array.astype(np.float32) * 2 - 1).astype(np.float32)
    raise ValueError(
        f"{name}: {array.dtype} pixels need their range (data.range=[low, high], --range LOW HIGH, images.read(range=))"
    )


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

    Values may overshoot to `LIMIT` in magnitude; they are looked at in eager mode only. Raises `ValueError`.
    """
    if not isinstance(images, Tensor):
        raise ValueError(
            f"images must be a tensor (B, {channels}, H, W) in [-1, 1], got {type(images).__name__}; "
            "convert a path, PIL image or array with images.read(x)"
        )
    shape, expected = tuple(images.shape), f"images must be (B, {channels}, H, W)"
    if not images.is_floating_point():
        call = "from_uint8(x)" if images.dtype == torch.uint8 else "from_uint8(x.to(torch.uint8))"
        raise ValueError(f"images must be floating in [-1, 1], got {images.dtype}; convert 0..255 with images.{call}")
    if len(shape) == 3:
        raise ValueError(f"{expected}, got {shape}; add the batch dimension with x.unsqueeze(0)")
    if len(shape) != 4:
        raise ValueError(f"{expected}, got {len(shape)} dimensions: {shape}")
    if shape[1] != channels:
        if shape[3] in (1, 3, 4, channels):
            raise ValueError(f"{expected}, got channels last {shape}; use x.permute(0, 3, 1, 2)")
        raise ValueError(f"{expected} as the config's channels={channels} says, got {shape[1]} channels: {shape}")
    if images.numel() and not torch.compiler.is_compiling():
        low, high = (float(bound) for bound in images.detach().aminmax())
        if not (low >= -LIMIT and high <= LIMIT):
            if not (abs(low) < float("inf") and abs(high) < float("inf")):
                raise ValueError("images hold NaN or infinite values; find them with x.isfinite()")
            raise ValueError(
                f"images must lie in [-1, 1], got values from {low:.4g} to {high:.4g}; "
                "convert 0..255 with x / 127.5 - 1, [0, 1] with images.from_float01(x)"
            )
