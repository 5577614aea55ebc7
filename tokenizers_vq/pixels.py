"""One picture of any kind to pixels: a file, PIL image, array or tensor to `(C, H, W)`."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokenizers_vq.pictures import (
    DEEP,
    MAX_PIXELS,
    BrokenImage,
    Depth,
    TooLarge,
    check_bands,
    deep_array,
    depth_of,
    open_picture,
)
from tokenizers_vq.text import printable

_NPY = b"\x93NUMPY"
Range = tuple[float, float]
"""values of black and of white"""
Source = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray | Tensor | Mapping[str, Any]
"""one picture: a path, a file or its bytes, a PIL image, an array, a tensor, or what `datasets` gives undecoded"""

_LUMA = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)  # ITU-R 601, which Pillow's "L" uses too
_HOW = "(data.range=[low, high], --range LOW HIGH, images.read(range=))"
_STRIP = 2**22  # pixels converted at a time, so that a large picture is not held in every mode on the way
_TURNS = {2: "x", 3: "yx", 4: "y", 5: "t", 6: "tx", 7: "tyx", 8: "ty"}
"""EXIF orientations: what puts such a picture upright, transposing it or reversing its rows (y) and columns (x)"""


def is_numbers(source: Any) -> bool:
    """Whether nested lists hold numbers, as `datasets` hands arrays over."""
    while isinstance(source, (list, tuple)) and source:
        source = source[0]
    return isinstance(source, (bool, int, float, np.number, np.bool_))


def decode(
    source: Source | Sequence[Any],
    channels: int = 3,
    name: str | None = None,
    range: Range | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """`read` of one picture without the last step: `(channels, H, W)`, uint8 where the source has 8 bits, else float32
    in [-1, 1]. Takes nested lists of numbers besides.

    `name` stands for the source in errors. Raises as `read` does.
    """
    if channels < 1:
        raise ValueError(f"channels must be at least 1, got {channels}")
    if range is not None:
        check_range(range)
    if isinstance(source, Mapping):
        name = name or source.get("path")
        source = source.get("bytes") or source.get("path") or b""
    if isinstance(source, (np.ndarray, Tensor, list, tuple)):
        return _from_array(_as_array(source, name or "array", range), channels, name or "array", range)
    if isinstance(source, Image.Image):
        return _from_pil(source, channels, name or getattr(source, "filename", "") or "PIL image", range)
    if hasattr(source, "read"):
        name, source = name or str(getattr(source, "name", "file")), source.read()
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_file(io.BytesIO(source), channels, name or "bytes", range, max_pixels, bytes(source[:6]) == _NPY)
    if source is None:
        raise BrokenImage(name or "picture", "null, no picture")
    if not isinstance(source, (str, os.PathLike)):
        kind = type(source).__name__
        raise ValueError(f"cannot read a value of type {kind}; give a path, bytes, a PIL image, an array or a list")
    path = Path(source)
    if not path.is_file():
        what = "is a folder; give its files one by one" if path.is_dir() else "is a pipe or a device"
        raise FileNotFoundError(f"no image file at {printable(source)}" + (f": it {what}" if path.exists() else ""))
    with path.open("rb") as file:
        is_array = path.suffix.lower() == ".npy"
        return _from_file(file, channels, name or str(path), range, max_pixels, is_array)


def check_range(range: Range) -> None:
    """Raises `ValueError` for what are no two finite numbers, black below white."""
    try:
        finite = len(range) == 2 and all(math.isfinite(bound) for bound in range)
    except TypeError:  # a single number, or texts
        finite = False
    if not finite:
        raise ValueError(f"range: needs two finite numbers, got {range!r}")
    if not range[0] < range[1]:
        raise ValueError(f"range: needs black below white, got {list(range)}")


def _from_file(
    file: BinaryIO, channels: int, name: str, range: Range | None, max_pixels: int, is_array: bool
) -> Tensor:
    if is_array:
        return _from_array(_load_array(file, channels, name, range, max_pixels), channels, name, range)
    picture, depth = open_picture(file, name, max_pixels)
    if depth.cut and range is not None:
        raise ValueError(f"{name}: of 16-bit colour Pillow reads 8 bits, so no range fits it; store it as .npy")
    return _from_pil(picture, channels, name, range, depth)


def _load_array(file: BinaryIO, channels: int, name: str, range: Range | None, max_pixels: int) -> np.ndarray:
    """A `.npy` file's array, whose header may claim any size."""
    try:
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = header[np.lib.format.read_magic(file)](file)
        values, start = math.prod(shape), file.tell()
        left = file.seek(0, os.SEEK_END) - start
        if dtype.hasobject or min(shape, default=1) < 0:
            raise ValueError("it holds objects, not numbers")
        if values * dtype.itemsize > left:
            raise ValueError(f"cut short: {left:,} bytes of {values * dtype.itemsize:,}")
        grey = channels == 3 and (len(shape) == 2 or 1 in (shape[0], shape[-1]))
        made = (1 if dtype == np.uint8 and range is None else 4) * (4 if grey else 1)
        need = values * (dtype.itemsize + made)
        if need > (most := 4 * max_pixels * max(3, channels)):
            raise TooLarge(
                name,
                f"an array of shape {shape} needs {need / 1e9:.1f} GB, more than max_pixels={max_pixels} allows; "
                f"{math.ceil(max_pixels * need / most)} admits it (data.max_pixels, --max-pixels, "
                "images.read(max_pixels=))",
            )
        file.seek(0)
        return np.load(file, allow_pickle=False)
    except BrokenImage:
        raise
    except Exception as error:  # a header is parsed as Python, an error of any kind
        raise BrokenImage(name, str(error) or type(error).__name__) from None


def _as_array(source: Any, name: str, range: Range | None) -> np.ndarray:
    """An array of an array, a tensor or nested lists of numbers."""
    if isinstance(source, np.ma.MaskedArray) and np.ma.is_masked(source):
        raise BrokenImage(name, "masked values")
    if isinstance(source, np.ndarray):
        return source
    if isinstance(source, Tensor):
        if source.is_floating_point() and range is None:
            raise ValueError(
                f"{name}: a tensor of floats does not say its range; in [-1, 1] it is an image already, for encode as "
                "(B, C, H, W); in [0, 1] convert it with images.from_float01(x); else give its range=(low, high)"
            )
        source = source.detach().cpu()
        return (source.float() if source.dtype == torch.bfloat16 else source).numpy()
    try:
        array = np.asarray(source)
    except (ValueError, OverflowError) as error:
        raise BrokenImage(name, f"nested lists that make no array: {str(error).split('.')[0]}") from None
    if array.dtype == object:
        raise BrokenImage(name, "nested lists with something else than numbers")
    if range is None and array.dtype == np.int64 and array.size and array.min() >= 0 and array.max() <= 65535:
        return array.astype(np.uint8 if array.max() <= 255 else np.uint16)
    return array


def _from_pil(
    picture: Image.Image, channels: int, name: str, range: Range | None, depth: Depth | None = None
) -> Tensor:
    if channels not in (1, 3):
        raise ValueError(
            f"{name}: a picture gives 1 or 3 channels, not {channels}; store it as .npy (H, W, {channels})"
        )
    if 0 in picture.size:
        raise BrokenImage(name, f"{picture.size[0]} x {picture.size[1]} pixels")
    try:
        if depth is None:
            check_bands(picture, name)
            depth = depth_of(picture)
            picture.load()  # which turns a TIFF upright, and then says so
        turn = _orientation(picture)
        if picture.mode not in (*DEEP, "F"):
            return _turned(_eight_bits(picture, channels), turn)
        array = deep_array(picture, depth, range, name)
    except ValueError as error:  # ours begin with the name
        if str(error).startswith(f"{name}: "):
            raise
        raise BrokenImage(name, str(error)) from None
    except Exception as error:
        raise BrokenImage(name, str(error) or type(error).__name__) from None
    if range is None and depth.white not in (None, 65535) and array.dtype == np.uint16:
        range = (0, depth.white)
    pixels = torch.from_numpy(_plain(array, name, range))
    pixels = -pixels if depth.inverted else pixels
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        pixels[torch.from_numpy(array == clear)] = 1
    return _turned(pixels[None], turn).expand(channels, -1, -1).contiguous()


def _orientation(picture: Image.Image) -> Any:
    """EXIF's, or XMP's; damaged metadata says nothing of the pixels, which may be sound."""
    try:
        return picture.getexif().get(0x0112, 1)
    except Exception:  # bytes that are no EXIF raise nearly anything
        return 1


def _turned(pixels: Tensor, orientation: Any) -> Tensor:
    """`(C, h, w)` put upright."""
    turn = _TURNS.get(orientation, "") if isinstance(orientation, int) else ""
    pixels = pixels.transpose(1, 2) if "t" in turn else pixels
    axes = [axis for axis, letter in ((1, "y"), (2, "x")) if letter in turn]
    return (pixels.flip(axes) if axes else pixels).contiguous()


def _eight_bits(picture: Image.Image, channels: int) -> Tensor:
    """uint8 `(channels, H, W)` of a picture of any mode of 8 bits or fewer, its transparency on white."""
    (width, height), mode = picture.size, "L" if channels == 1 else "RGB"
    clear = picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info
    pixels, rows = torch.empty(channels, height, width, dtype=torch.uint8), max(1, _STRIP // max(1, width))
    for top in range(0, height, rows):
        strip = picture if rows >= height else picture.crop((0, top, width, min(height, top + rows)))
        if clear:
            rgba = (strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        strip = strip if strip.mode == mode else strip.convert(mode)
        part = torch.from_numpy(np.array(strip))
        pixels[:, top : top + rows] = part if channels == 1 else part.permute(2, 0, 1)
    return pixels


def _from_array(array: np.ndarray, channels: int, name: str, range: Range | None) -> Tensor:
    array = _channels_last(array, channels, name)
    found = array.shape[2]
    if found != channels and (found, channels) not in ((1, 3), (3, 1)):
        last = "" if found - channels != 1 else (
            f"; the last is not taken for transparency: use channels={found} (a tokenizer that has them), keep "
            f"array[..., :{channels}], or give Image.fromarray(array) where it is"
        )  # fmt: skip
        raise ValueError(f"{name}: array of shape {array.shape} has {found} channels, {channels} are wanted{last}")
    if array.dtype == np.uint8 and range is None and (found, channels) == (3, 1):
        return _eight_bits(Image.fromarray(np.ascontiguousarray(array)), 1)
    pixels = torch.from_numpy(_plain(np.moveaxis(array, -1, 0), name, range))
    if found == channels:
        return pixels
    return (pixels * _LUMA).sum(0, keepdim=True) if channels == 1 else pixels.repeat(3, 1, 1)


def _channels_last(array: np.ndarray, channels: int, name: str) -> np.ndarray:
    """`(H, W, C)` of `(H, W)`, `(H, W, C)` or `(C, H, W)`."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or 0 in array.shape:
        raise BrokenImage(name, f"array of shape {array.shape}; expected (H, W), (H, W, C) or (C, H, W)")
    for fit in ((1, 3) if channels in (1, 3) else (channels,), (2, 4)):  # the second are refused, by their number
        if array.shape[2] in fit:
            return array
        if array.shape[0] in fit:
            return np.moveaxis(array, 0, -1)
    return array


def _plain(array: np.ndarray, name: str, range: Range | None) -> np.ndarray:
    """A new array of the same shape: uint8 as it is, everything else as float32 in [-1, 1]."""
    kind = array.dtype.kind
    if kind not in "biuf":
        raise ValueError(f"{name}: cannot read {array.dtype} pixels; give integers or floats")
    if kind == "f":
        low, high = float(array.min()), float(array.max())
        if math.isnan(low) or math.isinf(low) or math.isinf(high):
            what = "NaN" if math.isnan(low) else "infinite"
            raise BrokenImage(name, f"{what} values, where perhaps there are no data")
        if range is None and not (low >= 0 and high <= 1):
            raise ValueError(
                f"{name}: floats are read as [0, 1], but values span {low:.4g} to {high:.4g}; give their range {_HOW}"
            )
    if range is not None:
        scale, zero = range[1] - range[0], range[0]
        return _mapped(array, lambda part: ((part.astype(np.float64) - zero) / scale * 2 - 1).clip(-1, 1))
    if array.dtype == np.uint8:
        return np.array(array, order="C")
    if kind == "b":
        return np.array(array, dtype=np.uint8, order="C") * 255
    if kind == "u" and array.dtype.itemsize == 2:  # both byte orders
        return _mapped(array, lambda part: part.astype(np.float32) / 32767.5 - 1)
    if kind == "f":
        return _mapped(array, lambda part: part.astype(np.float32) * 2 - 1)
    raise ValueError(f"{name}: {array.dtype} pixels need their range {_HOW}")


def _mapped(array: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`function` of some rows at a time, as float32."""
    mapped = np.empty(array.shape, np.float32)
    rows = max(1, _STRIP // array.shape[-1])
    for top in range(0, array.shape[-2], rows):
        mapped[..., top : top + rows, :] = function(array[..., top : top + rows, :])
    return mapped
