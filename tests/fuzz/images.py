"""Mutated pictures: `python -m tests.fuzz.images --count 100000`."""

from __future__ import annotations

import io
import random
import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image, features

from tests.fuzz import harness
from tokenizers_vq import images

_NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**24 - 1, 2**31 - 1, 2**31, 2**32 - 1)


@cache
def seeds() -> tuple[bytes, ...]:
    """A small sound file of every kind that is read."""
    generator = np.random.default_rng(0)
    colour = Image.fromarray(generator.integers(0, 256, (12, 17, 3), dtype=np.uint8))
    deep = Image.fromarray(generator.integers(0, 65536, (12, 17)).astype(np.uint16))
    exif, profile = Image.Exif(), b"\0" * 128
    exif[0x0112], exif[0x010E] = 6, "a title"
    clear = colour.convert("RGBA")
    clear.putalpha(77)
    palette, bits = colour.quantize(16), colour.convert("1")
    float_grey = Image.fromarray(generator.random((12, 17)).astype(np.float32))
    told = {"exif": exif, "icc_profile": profile}
    frames = {"save_all": True, "append_images": [colour.rotate(90), colour.rotate(180)]}
    made = [
        *((colour, "PNG", options) for options in (told, frames)),
        *((picture, "PNG", {}) for picture in (clear, palette, deep, bits, clear.convert("LA"))),
        (palette, "PNG", {"transparency": 3}),
        *((colour, "JPEG", options) for options in (told, {"progressive": True, **told}, {"subsampling": 0})),
        (colour.convert("CMYK"), "JPEG", {}),
        (colour.convert("L"), "JPEG", {"progressive": True}),
        *((colour, "TIFF", {"compression": how, **told}) for how in (None, "tiff_lzw", "jpeg", "tiff_adobe_deflate")),
        *((picture, "TIFF", {}) for picture in (clear, palette, deep, float_grey, bits, deep.convert("I"))),
        (bits, "TIFF", {"compression": "group4"}),
        *((colour, "GIF", options) for options in ({}, frames)),
        (palette, "GIF", {"transparency": 2}),
        *((picture, "BMP", {}) for picture in (colour, palette, bits)),
        *((picture, "PPM", {}) for picture in (colour, deep, colour.convert("L"))),
        *((picture, "TGA", {"compression": how}) for picture in (colour, clear) for how in (None, "tga_rle")),
        (colour, "DIB", {}),
        *((clear, "ICO", {"sizes": [(8, 8)], "bitmap_format": inside}) for inside in ("png", "bmp")),
    ]
    if features.check("webp"):
        made += [(picture, "WEBP", options) for picture in (colour, clear) for options in (told, {"lossless": True})]
        made += [(colour, "WEBP", frames)]
    if features.check("jpg_2000"):
        made += [(colour, "JPEG2000", {}), (deep, "JPEG2000", {}), (clear, "JPEG2000", {"no_jp2": True})]
    if features.check("avif"):
        made += [(colour, "AVIF", {"speed": 10, **told}), (colour, "AVIF", {"speed": 10, **frames})]
    return tuple(_file(*one) for one in made) + tuple(
        _array(generator.random((6, 7, 3)).astype(dtype)) for dtype in ("uint8", "uint16", "float32", "float64")
    )


def _file(picture: Image.Image, form: str, options: dict) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **{name: value for name, value in options.items() if value is not None})
    return file.getvalue()


def _array(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def make(number: int) -> bytes:
    """A seed with a few bytes, numbers or stretches changed, the first ones more often than others."""
    draw = random.Random(number)
    content = bytearray(seeds()[number % len(seeds())])
    for _ in range(draw.choice((1, 1, 2, 3, 8, 30))):
        at = draw.randrange(draw.choice((len(content), min(64, len(content)))))
        kind = draw.randrange(7)
        if kind < 2:
            content[at] = draw.randrange(256)
        elif kind == 2:
            content[at] ^= 1 << draw.randrange(8)
        elif kind == 3:
            form = draw.choice(("<H", ">H", "<I", ">I"))
            value = struct.pack(form, draw.choice(_NUMBERS) % 256 ** struct.calcsize(form))
            content[at : at + len(value)] = value
        elif kind == 4 and len(content) > 1:
            del content[at : at + draw.choice((1, 2, 4, 20, len(content)))]
        elif kind == 5:
            content[at:at] = content[at : at + draw.randrange(1, 64)]
        else:
            content[at : at + 4] = content[(other := draw.randrange(len(content))) : other + 4]
        content = content or bytearray(1)
    mutated = bytes(content)
    return _checked(mutated) if draw.random() < 0.7 else mutated


def _checked(content: bytes) -> bytes:
    """A PNG with its checksums put right, so that what they guard is reached."""
    if not content.startswith(b"\x89PNG"):
        return content
    at, whole = 8, [content[:8]]
    while at + 12 <= len(content):
        length = min(int.from_bytes(content[at : at + 4], "big"), len(content) - at - 12)
        body = content[at + 4 : at + 8 + length]
        whole += [content[at : at + 4], body, zlib.crc32(body).to_bytes(4, "big")]
        at += 12 + length
    return b"".join((*whole, content[at:]))


def call(content: bytes) -> None:
    """Read it as people do; an error must name its source."""
    way = zlib.crc32(content)
    try:
        size, bound = ((None, 2**25), (16, images.MAX_PIXELS))[way // 4 % 2]  # what is kept counts too
        image = images.read(content, (1, 3)[way % 2], (None, (0, 1000))[way // 2 % 2], size, bound)
    except ValueError as error:
        if not str(error).startswith("bytes: "):
            raise RuntimeError(f"names no source: {error}") from None
        raise
    assert image.abs().max() <= 1, "out of [-1, 1]"


DOCUMENTED = (ValueError,)

if __name__ == "__main__":
    import warnings

    import tokenizers_vq.resizing  # noqa: F401  (before the children, each of which would import it)

    warnings.simplefilter("ignore")
    seeds()
    harness.main(make, call, DOCUMENTED, "pictures")
