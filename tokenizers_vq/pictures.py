"""Picture files within bounds: what a file asks for is known before it is decoded, damaged metadata is left out."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

MAX_PIXELS = 89_478_485
"""Pillow's own bound on the pixels of a picture: 1 GiB at 12 bytes a pixel"""

DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes for whole numbers of more than 8 bits"""

_BYTES = 12  # a pixel takes at most, decoded and as a tensor
_DEARER = {"WEBP": 20, "AVIF": 16, "JPEG2000": 24}  # these decoders hold the picture several times
_PROGRESSIVE = 16
_DEEP = {"I": 28, "F": 28, **dict.fromkeys(DEEP[1:], 20)}  # these become floats of as many channels as are asked for
_PASSES = 20  # times that a JPEG may go over `max_pixels` pixels; common progressive files have ten scans

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
_UNSURE = "TGA"  # has no signature, so it is tried last


class BrokenImage(ValueError):  # noqa: N818 (names what is broken, not the act)
    """A file that is no readable picture: `name` is the file, `reason` what its decoder said."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, " ".join(reason.split())
        super().__init__(f"{self.name}: not a readable image: {self.reason}")

    def __reduce__(self) -> tuple[Any, ...]:  # pickled by loader processes
        return type(self), (self.name, self.reason)


class TooLarge(BrokenImage):
    """A picture that would take more memory to decode than `max_pixels` allows; it was not decoded."""

    @property
    def what(self) -> str:
        """The reason without the bound and what to do about it."""
        return self.reason.partition(", more than ")[0]


class Depth(NamedTuple):
    """What Pillow's mode does not say of a file's numbers; known before they are decoded."""

    dtype: str | None = None
    """numpy type of the file's whole numbers, where Pillow widens them to int32"""
    white: int | None = None
    """largest value that the file's bits hold"""
    scaled: int | None = None
    """what Pillow makes of the largest value; None: the numbers are as the file has them"""
    inverted: bool = False
    """small values are white (TIFF's WhiteIsZero), which Pillow turns round for 8 bits only"""
    cut: bool = False
    """colour of more than 8 bits, of which Pillow keeps 8"""


def open_picture(file: BinaryIO, name: str, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, Depth]:
    """The decoded first frame of a picture's file. Raises `BrokenImage`, before decoding where it would cost too much.

    A PNG, JPEG or WebP that cannot be opened is tried again without its metadata: its pixels may be sound.
    """
    try:
        return _decode(file, name, max_pixels)
    except BrokenImage:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged bytes: OSError, SyntaxError, struct.error
        reason = str(error) or type(error).__name__
    bare = without_metadata(_content(file))
    if bare is not None:
        import io

        try:
            return _decode(io.BytesIO(bare), name, max_pixels)
        except BrokenImage:
            raise
        except Exception as error:
            reason = str(error) or reason
    raise BrokenImage(name, reason)


def _decode(file: BinaryIO, name: str, max_pixels: int) -> tuple[Image.Image, Depth]:
    file.seek(0)
    head = file.read(64)
    _check_cost(_webp_size(head), "WEBP", _DEARER["WEBP"], name, max_pixels)  # before a canvas of that size is made
    for size in _sizes_in_icon(file, head):
        _check_cost(size, "ICO", _BYTES, name, max_pixels)
    picture = _identify(file, head, name)
    form, cost = picture.format or "", _DEARER.get(picture.format or "", _BYTES)
    cost = max(cost, _DEEP.get(picture.mode, 0), _PROGRESSIVE if picture.info.get("progressive") else 0)
    _check_cost(picture.size, form, cost, name, max_pixels)
    if form in ("JPEG", "MPO"):
        _check_scans(_content(file), picture.size, name, max_pixels)
    depth = depth_of(picture, _content(file) if form == "JPEG2000" else b"")
    check_bands(picture, name)
    picture.load()
    return picture, depth


def _identify(file: BinaryIO, head: bytes, name: str) -> Image.Image:
    """`Image.open` without its bound on pixels (ours says how to raise it) and without formats that run programs."""
    if not head:
        raise BrokenImage(name, "empty file")
    Image.init()
    others = [form for form, (factory, _) in Image.OPEN.items() if not factory.__module__.startswith("PIL.")]
    for form in (*_FORMATS, *others, _UNSURE):
        factory, accepts = Image.OPEN.get(form, (None, None))
        if factory is None:
            continue
        accepted = accepts is None or accepts(head[:16].ljust(16, b"\0"))
        if isinstance(accepted, str):  # a format that this Pillow was built without
            raise BrokenImage(name, accepted)
        if not accepted:
            continue
        file.seek(0)
        try:
            return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            if "unknown pixel mode" in str(error):
                reason = f"a {form} of bands and bits that Pillow does not read; store it as .npy"
                raise BrokenImage(name, reason) from None
            if form in _FORMATS:
                raise ValueError(str(error) or f"damaged {form}") from None
    raise BrokenImage(name, "not a picture, or an unknown format")


def _check_cost(size: tuple[int, int] | None, form: str, cost: int, name: str, max_pixels: int) -> None:
    if size is None or size[0] * size[1] * cost <= max_pixels * _BYTES:
        return
    need = size[0] * size[1] * cost
    raise TooLarge(
        name,
        f"{size[0]:,} x {size[1]:,} pixels of {form} need {need / 1e9:.1f} GB to decode, more than "
        f"max_pixels={max_pixels} allows; {-(-need // _BYTES)} admits it, at that memory in every loader "
        "(data.max_pixels, --max-pixels, images.read(max_pixels=))",
    )


def _check_scans(content: bytes, size: tuple[int, int], name: str, max_pixels: int) -> None:
    """Every scan of a JPEG goes over all of its pixels."""
    most = _PASSES * max_pixels // max(1, size[0] * size[1])
    if content.count(b"\xff\xda") > most and (found := scans(content)) > most:
        raise BrokenImage(
            name, f"a JPEG of {found:,} scans, which would take minutes to decode; save it again as a baseline JPEG"
        )


_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # but stuffed bytes, restarts and fill


def scans(content: bytes) -> int:
    """Scans of the first JPEG in `content`."""
    at, found = 2, 0
    while (hit := _MARKER.search(content, at)) is not None:
        marker, at = hit[1][0], hit.end()
        if marker == 0xD9:
            break
        found += marker == 0xDA
        if marker not in (0x01, 0xD8):
            at += int.from_bytes(content[at : at + 2], "big")
    return found


def _webp_size(head: bytes) -> tuple[int, int] | None:
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(head) < 30:
        return None
    if head[12:16] == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


def _sizes_in_icon(file: BinaryIO, head: bytes) -> Iterator[tuple[int, int]]:
    """Of the PNG files inside an icon, whose table may say anything: Pillow decodes one when it opens the icon."""
    if head[:4] != b"\0\0\1\0":
        return
    for entry in range(min(256, int.from_bytes(head[4:6], "little"))):
        file.seek(6 + 16 * entry + 12)
        file.seek(int.from_bytes(file.read(4), "little"))
        inside = file.read(24)
        if inside[:8] == _PNG and len(inside) == 24:
            yield struct.unpack(">II", inside[16:24])


def check_bands(picture: Any, name: str) -> None:
    """Raises `BrokenImage` for a TIFF whose last band is transparency to Pillow, which no ExtraSamples says it is."""
    if picture.format == "TIFF" and picture.mode in ("LA", "RGBA") and 338 not in picture.tag_v2:
        bands = len(picture.mode)
        raise BrokenImage(
            name,
            f"a TIFF of {bands} bands that does not say whether the last is transparency (ExtraSamples); "
            f"store it as .npy (H, W, {bands}) or without that band",
        )


def depth_of(picture: Any, content: bytes = b"") -> Depth:
    """Of an opened picture, best before it is loaded; `content` are a JPEG 2000's bytes."""
    tile = picture.tile[0] if getattr(picture, "tile", None) else None
    cut = picture.mode not in (*DEEP, "F") and tile is not None and ";16" in str(tile[3])
    if picture.format == "TIFF":
        bits, form = (picture.tag_v2.get(tag, (default,)) for tag, default in ((258, 1), (339, 1)))
        kind = {1: "uint", 2: "int"}.get(form[0] if form else 1)
        dtype = f"{kind}{16 if bits[0] <= 16 else 32}" if kind and picture.mode in DEEP else None
        white = 2 ** bits[0] - 1 if kind == "uint" and bits[0] <= 16 else None
        return Depth(dtype, white, None, picture.tag_v2.get(262) == 0 and picture.mode in (*DEEP, "F"), cut)
    if picture.format == "PNG":
        return Depth("uint16", 65535, None, False, cut)
    if picture.format == "PPM":
        values = tile[3][-1] if tile is not None and tile[0] != "raw" else 0
        white = values or 65535
        cut = picture.mode not in DEEP and values > 255
        return Depth("uint16", white if tile is not None else None, 65535, False, cut)
    if picture.format == "JPEG2000":
        at = content.find(b"\xff\x4f\xff\x51")
        bits = content[at + 42] if 0 <= at < len(content) - 42 else 0
        cut = bits & 0x7F >= 8 and picture.mode not in DEEP
        if not 8 <= bits < 16:  # signed numbers are moved besides
            return Depth("uint16", None, 65535, False, cut)
        white = 2 ** (bits + 1) - 1
        return Depth("uint16", white, white << (15 - bits), False, cut)
    return Depth()


def deep_array(picture: Image.Image, depth: Depth, range: tuple[float, float] | None, name: str) -> np.ndarray:
    """`(H, W)` numbers of a grey picture of more than 8 bits, as its file has them and in the file's type.

    Raises `ValueError` for a `range` where Pillow has scaled them and it is not known from what.
    """
    array = np.array(picture)
    if picture.mode == "F":
        return array
    if picture.mode != "I":
        array = array.astype(np.uint16, copy=False)
    elif depth.dtype is not None:
        array = array.view(np.uint32) if depth.dtype == "uint32" else array.astype(depth.dtype)
    if depth.scaled is None or depth.scaled == depth.white or (depth.white is None and range is None):
        return array
    if depth.white is None:
        raise ValueError(
            f"{name}: of {picture.format} Pillow scales the values to 16 bits, so no range fits them; "
            "give the file's path, or store it as .npy"
        )
    return np.rint(array * (depth.white / depth.scaled)).astype(np.uint16)


def without_metadata(content: bytes) -> bytes | None:
    """A PNG, JPEG or WebP with what its pixels need alone, None where nothing can be left out."""
    if content.startswith(_PNG):
        bare = _bare_png(content)
    elif content.startswith(b"\xff\xd8"):
        bare = _bare_jpeg(content)
    elif content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        bare = _bare_webp(content)
    else:
        return None
    return bare if bare != content else None


_PNG = b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


def _bare_png(content: bytes) -> bytes | None:
    """Chunks whose checksum is right; after a damaged one, whose length may be wrong, the next known one."""
    at, kept = len(_PNG), [_PNG]
    while at + 12 <= len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        whole = content[at : at + 12 + length]
        sound = len(whole) == 12 + length and zlib.crc32(whole[4:-4]) == int.from_bytes(whole[-4:], "big")
        if kind in _PIXEL_CHUNKS:
            if not sound:
                return None
            kept.append(whole)
        elif sound and kind == b"eXIf":
            kept.append(whole)
        if sound:
            at += len(whole)
            continue
        following = [found for kind in _PIXEL_CHUNKS if (found := content.find(kind, at + 8)) > 0]
        if not following:
            break
        at = min(following) - 4
    return b"".join(kept)


def _bare_jpeg(content: bytes) -> bytes | None:
    """Without application segments (but Adobe's, which says what the colours are) and comments."""
    at, kept = 2, [content[:2]]
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        adobe = content[at + 1] == 0xEE and end - at >= 16
        if adobe or not (0xE0 <= content[at + 1] <= 0xEF or content[at + 1] == 0xFE):
            kept.append(content[at:end])
        at = end
    return b"".join((*kept, content[at:]))


def _bare_webp(content: bytes) -> bytes | None:
    at, kept = 12, []
    while at + 8 <= len(content):
        end = at + 8 + int.from_bytes(content[at + 4 : at + 8], "little")
        end += end % 2
        if content[at : at + 4] in (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF") and end <= len(content) + 1:
            kept.append(content[at:end])
        at = end
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _content(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()
