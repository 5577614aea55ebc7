"""Codecs that `compare` sets side by side: tokenizers, and Pillow's JPEG, WebP and AVIF."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokenizers_vq.codes import CodeLayout, Codes
from tokenizers_vq.devices import computing
from tokenizers_vq.evaluation.figures import display, image_png
from tokenizers_vq.images import from_uint8, to_pil

QUALITIES: dict[str, tuple[int, ...]] = {
    "jpeg": (1, 5, 10, 15, 20, 35, 50, 75),
    "webp": (1, 10, 20, 35, 50, 75),
    "avif": (1, 10, 20, 30, 40, 50, 60),
}
"""qualities by default: from the fewest bits that the format can make to about 1.5 a pixel"""

_OPTIONS: dict[str, dict[str, Any]] = {
    "jpeg": {"optimize": True, "subsampling": "4:2:0"},
    "webp": {"method": 6},
    "avif": {"speed": 6, "subsampling": "4:2:0"},
}
_LABELS = {"jpeg": "JPEG", "webp": "WebP", "avif": "AVIF"}


class Coded(NamedTuple):
    """What a codec makes of a batch."""

    images: Tensor
    """float32 `(B, C, H, W)` in [-1, 1], on the CPU"""
    bits: Tensor
    """float64 `(B,)`, of each image"""


class Files(NamedTuple):
    """Encoded pictures, whole files in memory."""

    data: list[bytes]
    channels: int


class Codec(Protocol):
    """Images `(B, C, H, W)` in [-1, 1] -> `Coded`, in two halves that can be timed.

    `name` is the row's, `family` joins the qualities of one format; `device`, `precision` and `threads` say where it
    computes.
    """

    name: str
    family: str
    device: torch.device
    precision: str

    def encode(self, images: Tensor) -> Any: ...

    def decode(self, coded: Any) -> Tensor: ...

    def bits(self, coded: Any) -> Tensor: ...

    def picture(self, coded: Any, decoded: Tensor, index: int) -> tuple[str, bytes]: ...

    def __call__(self, images: Tensor) -> Coded: ...

    @property
    def threads(self) -> int: ...

    def to_dict(self) -> dict[str, Any]: ...


class TokenizerCodec:
    """A tokenizer as a codec: log2(K) bits a code, whatever the image.

    `tokenizer`: `encode`, `decode`, `code_layout` (a `Tokenizer`, or anything with these verbs), in eval mode.
    """

    def __init__(
        self, tokenizer: Any, name: str, autocast: torch.dtype | None = None, family: str = "tokenizer"
    ) -> None:
        """`family`: joins the rows of one tokenizer that keeps so many codes or so many."""
        self.tokenizer, self.name, self.autocast, self.family = tokenizer, name, autocast, family
        self.device: torch.device = getattr(tokenizer, "device", torch.device("cpu"))
        self.precision = str(autocast or getattr(tokenizer, "dtype", torch.float32)).removeprefix("torch.")

    @property
    def channels(self) -> int:
        return self.tokenizer.config.channels

    @property
    def threads(self) -> int:
        return torch.get_num_threads()

    def layout(self, height: int, width: int) -> CodeLayout:
        """Layout of an image's codes. Raises `ValueError`, one line, where the tokenizer cannot take this size."""
        try:
            return self.tokenizer.code_layout(height, width)
        except ValueError as error:
            raise ValueError(f"{self.name} cannot take images of {height}x{width}: {error}") from None

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Codes, float]:
        """`(B, C, H, W)` -> codes, and the bits of each image."""
        with computing(self.device, self.autocast):
            codes = self.tokenizer.encode(images.to(self.device))
        return codes, self.tokenizer.code_layout(*images.shape[-2:]).bits

    @torch.no_grad()
    def decode(self, coded: tuple[Codes, float]) -> Tensor:
        """float32 `(B, C, H, W)` in [-1, 1], on the tokenizer's device; not rounded to 8 bits."""
        with computing(self.device, self.autocast):
            decoded = self.tokenizer.decode(coded[0])
        return decoded.float().clamp(-1, 1)

    def bits(self, coded: tuple[Codes, float]) -> Tensor:
        codes, bits = coded
        first = codes if isinstance(codes, Tensor) else codes[0]
        return torch.full((len(first),), bits, dtype=torch.float64)

    def picture(self, coded: tuple[Codes, float], decoded: Tensor, index: int) -> tuple[str, bytes]:
        """The decoded image, as a PNG file for a page."""
        return "image/png", png(decoded[index])

    def __call__(self, images: Tensor) -> Coded:
        coded = self.encode(images)
        return Coded(self.decode(coded).cpu(), self.bits(coded))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "tokenizer", "bits": "log2(number of codes) a code", "rounding": "none"}


class PillowCodec:
    """JPEG, WebP or AVIF at one quality: the bits are those of the whole file, header and all.

    `format`: `jpeg`, `webp` or `avif`. Raises `ValueError` for other formats and qualities, and where Pillow lacks it.
    """

    precision = "8 bits"

    def __init__(self, format: str, quality: int) -> None:
        if format not in QUALITIES:
            raise ValueError(f"no codec '{format}': choose from {', '.join(QUALITIES)}")
        low = 1 if format == "jpeg" else 0
        if not low <= quality <= 100:
            raise ValueError(f"{_LABELS[format]} has no quality {quality}: choose from {low} to 100")
        if reason := missing(format):
            raise ValueError(reason)
        self.format, self.quality = format, quality
        self.family, self.name = _LABELS[format], f"{_LABELS[format]} {quality}"
        self.device = torch.device("cpu")

    @property
    def threads(self) -> int:
        """Threads at most; Pillow's AVIF takes all it may, the others have one."""
        if self.format != "avif":
            return 1
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def encode(self, images: Tensor) -> Files:
        """`(B, C, H, W)`, C 1 or 3 -> one file an image, rounded to 8 bits first."""
        files = []
        for image in images:
            buffer = io.BytesIO()
            to_pil(image).save(buffer, self.family, quality=self.quality, **_OPTIONS[self.format])
            files.append(buffer.getvalue())
        return Files(files, images.shape[1])

    def decode(self, coded: Files) -> Tensor:
        """float32 `(B, C, H, W)` in [-1, 1]."""
        pictures = []
        for file in coded.data:
            with Image.open(io.BytesIO(file)) as opened:
                pictures.append(np.array(opened.convert("L" if coded.channels == 1 else "RGB")))
        pixels = torch.from_numpy(np.stack(pictures))
        return from_uint8(pixels[:, None] if coded.channels == 1 else pixels.permute(0, 3, 1, 2).contiguous())

    def bits(self, coded: Files) -> Tensor:
        return torch.tensor([8.0 * len(file) for file in coded.data], dtype=torch.float64)

    def picture(self, coded: Files, decoded: Tensor, index: int) -> tuple[str, bytes]:
        """The encoded file itself: far smaller than what it decodes to, and browsers read it."""
        return f"image/{self.format}", coded.data[index]

    def __call__(self, images: Tensor) -> Coded:
        coded = self.encode(images)
        return Coded(self.decode(coded), self.bits(coded))

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.format,
            "quality": self.quality,
            **_OPTIONS[self.format],
            "bits": "8 x bytes of the whole file",
            "rounding": "8 bits",
        }


def png(image: Tensor) -> bytes:
    """`(C, H, W)` in [-1, 1] as a PNG file, as pages show images."""
    return image_png(Image.fromarray(display(image[None])[0].numpy()))


def missing(format: str) -> str | None:
    """Why Pillow cannot make this format here; None where it can."""
    import PIL
    from PIL import features

    if features.check("jpg" if format == "jpeg" else format):
        return None
    newer = ", Pillow 11.3 and later wheels do" if format == "avif" else ""
    return f"Pillow {PIL.__version__} comes without {_LABELS[format]} here{newer}"


def pillow_codecs(
    qualities: Mapping[str, Sequence[int]] = QUALITIES, channels: int = 3
) -> tuple[list[PillowCodec], dict[str, str]]:
    """A codec for each format and quality, rising; and the formats that are left out, with the reason.

    Raises `ValueError` for unknown formats and qualities.
    """
    found: list[PillowCodec] = []
    left_out: dict[str, str] = {}
    for format, values in qualities.items():
        reason = missing(format) if format in QUALITIES else None
        if reason is None and channels not in (1, 3):
            reason = f"takes images of 1 or 3 channels, these have {channels}"
        if reason:
            left_out[_LABELS[format]] = reason
        else:
            found += [PillowCodec(format, quality) for quality in sorted(set(values))]
    return found, left_out


def nearest_quality(format: str, images: Tensor, bits: float) -> int:
    """The quality at which files of `images` `(B, C, H, W)` come nearest to `bits` an image, by ratio.

    Found by bisection: files grow with the quality. Raises `ValueError` as `PillowCodec` does.
    """

    def apart(quality: int) -> float:
        codec = PillowCodec(format, quality)
        return math.log(codec.bits(codec.encode(images)).mean().item() / bits)

    low, high = 1 if format == "jpeg" else 0, 100
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if apart(middle) < 0 else (low, middle)
    return min((low, high), key=lambda quality: abs(apart(quality)))


def versions() -> dict[str, str]:
    """Of the libraries that the numbers depend on."""
    import platform
    from importlib import metadata

    from PIL import features

    packages = ("tokenizers-vq", "torch", "torchvision", "timm", "lpips", "torchmetrics", "Pillow")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    for library, feature in (("libjpeg-turbo", "libjpeg_turbo"), ("libwebp", "webp"), ("libavif", "avif")):
        if features.check(feature):
            found[library] = str(features.version(feature))
    return found
