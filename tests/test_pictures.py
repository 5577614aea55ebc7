"""What a file says of its numbers is followed, what it would cost is known before, damaged metadata costs no pixel."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tokenizers_vq import images, pictures

Tags = dict[int, tuple[str, list[int]]]


def _tiff(array: np.ndarray, photometric: int, extra: list[int] | None = None, **changed: int) -> bytes:
    """An uncompressed TIFF of an array `(H, W)` or `(H, W, C)`; `bits` and `width` where it holds packed numbers."""
    bands = array.shape[2] if array.ndim == 3 else 1
    bits, form = changed.get("bits", array.dtype.itemsize * 8), {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    tags: Tags = {256: ("L", [changed.get("width", array.shape[1])]), 257: ("L", [array.shape[0]])}
    tags |= {258: ("H", [bits] * bands), 259: ("H", [1]), 262: ("H", [photometric]), 273: ("L", [0])}
    tags |= {277: ("H", [bands]), 278: ("L", [array.shape[0]]), 279: ("L", [array.nbytes]), 339: ("H", [form] * bands)}
    if extra is not None:
        tags[338] = ("H", extra)
    start = 8 + 2 + 12 * len(tags) + 4
    tags[273] = ("L", [start + sum(len(v) * struct.calcsize(f) for f, v in tags.values() if len(v) > 2)])
    entries, pool = b"", b""
    for tag, (letter, values) in sorted(tags.items()):
        raw = struct.pack(f"<{len(values)}{letter}", *values)
        head = struct.pack("<HHL", tag, {"H": 3, "L": 4}[letter], len(values))
        entries += head + (raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack("<L", start + len(pool)))
        pool += raw if len(raw) > 4 else b""
    return b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + bytes(4) + pool + array.tobytes()


def _grey(value: float, dtype: str) -> np.ndarray:
    return np.full((4, 4), value, dtype)


def _saved(picture: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


RED = Image.new("RGB", (8, 8), (200, 0, 0))
TWELVE = np.frombuffer(bytes([0x40, 0x04, 0x00] * 8), np.uint8).reshape(4, 6)  # 1024 everywhere, in 12 bits


@pytest.mark.parametrize(
    "content, range, expected",
    [
        (_tiff(_grey(51, "u1"), 0), None, 0.6),
        (_tiff(_grey(16384, "u2"), 1), None, -0.5),
        (_tiff(_grey(16384, "u2"), 0), None, 0.5),  # WhiteIsZero
        (_tiff(_grey(1000, "u2"), 0), (0, 4000), 0.5),
        (_tiff(_grey(0.25, "f4"), 1), None, -0.5),
        (_tiff(_grey(0.25, "f4"), 0), None, 0.5),
        (_tiff(_grey(-1000, "i2"), 1), (-2000, 0), 0.0),
        (_tiff(_grey(200, "i4"), 1), (0, 400), 0.0),
        (_tiff(_grey(3 * 2**30, "u4"), 1), (0, 2**32), 0.5),  # beyond what Pillow's int32 holds
        (_tiff(TWELVE, 1, bits=12, width=4), None, -0.5),  # white is 4095
        (_tiff(TWELVE, 1, bits=12, width=4), (0, 2048), 0.0),
        (b"P5\n1 1\n4095\n" + struct.pack(">H", 1024), None, -0.5),
        (b"P5\n1 1\n4095\n" + struct.pack(">H", 1024), (0, 2048), 0.0),  # Pillow scales it to 65535
        (b"P5\n1 1\n65535\n" + struct.pack(">H", 1024), (0, 2048), 0.0),
        (_saved(Image.fromarray(_grey(16384, "u2")), "PNG"), (0, 65535), -0.5),
    ],
)
def test_numbers_are_what_the_file_means(content: bytes, range, expected: float) -> None:
    values = images.read(content, 1, range=range).unique()
    assert values.tolist() == pytest.approx([expected], abs=1e-3)
    assert images.read(content, 3, range=range).shape[1] == 3


def test_jpeg_2000_of_fewer_than_sixteen_bits_keeps_its_numbers() -> None:
    picture = Image.fromarray(np.full((64, 64), 4096, np.uint16))
    content = bytearray(_saved(picture, "JPEG2000", irreversible=False, no_jp2=True))
    assert images.read(bytes(content), 1, range=(0, 16384)).unique().tolist() == [-0.5]
    depth = pictures.depth_of(Image.open(io.BytesIO(content)), bytes(content))
    assert (depth.white, depth.scaled) == (65535, 65535)
    content[content.find(b"\xff\x51") + 40] = 14  # says 15 bits, as Sentinel-2's files do
    depth = pictures.depth_of(Image.open(io.BytesIO(content)), bytes(content))
    assert (depth.white, depth.scaled) == (32767, 65534)


@pytest.mark.parametrize("dtype", ["i2", "i4", "u4"])
def test_integers_without_a_known_white_ask_for_their_range(dtype: str) -> None:
    with pytest.raises(ValueError, match=r"int(16|32) pixels need their range \(data.range="):
        images.read(_tiff(_grey(200, dtype), 1), 1)
    with pytest.raises(ValueError, match="int32 pixels need their range"):
        images.read(Image.fromarray(_grey(200, "i4")), 1)


RGBN = np.full((4, 4, 4), [200, 0, 0, 51], np.uint8)


@pytest.mark.parametrize(
    "photometric, extra, bands, expected",
    [
        (2, [2], RGBN, [244, 204, 204]),  # transparency
        (2, [1], np.full((4, 4, 4), [40, 0, 0, 51], np.uint8), [244, 204, 204]),  # premultiplied
        (2, [0], RGBN, [200, 0, 0]),  # unspecified: colour is colour
    ],
)
def test_a_tiffs_fourth_band_is_what_it_says(photometric: int, extra: list[int], bands, expected: list[int]) -> None:
    read = images.to_uint8(images.read(_tiff(bands, photometric, extra)))[0, :, 0, 0]
    assert read.tolist() == expected


@pytest.mark.parametrize(
    "content, problem",
    [
        (_tiff(RGBN, 2), "a TIFF of 4 bands that does not say whether the last is transparency"),
        (_tiff(RGBN.astype("u2"), 2), "a TIFF of 4 bands that does not say"),
        (_tiff(RGBN, 1, [0, 0, 0]), "bands and bits that Pillow does not read"),
        (_tiff(_grey(0.5, "f8"), 1), "bands and bits that Pillow does not read"),
        (_tiff(_grey(np.nan, "f4"), 1), "NaN values"),
        (b"", "empty file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture, or an unknown format"),  # runs a program
    ],
)
def test_what_is_not_said_is_not_guessed(content: bytes, problem: str) -> None:
    with pytest.raises(images.BrokenImage, match=problem) as error:
        images.read(content)
    assert "\n" not in str(error.value)


def test_an_opened_picture_is_read_as_its_file_is() -> None:
    for content, range in ((_tiff(_grey(16384, "u2"), 0), None), (_tiff(_grey(-5, "i2"), 1), (-10, 0))):
        for loaded in (False, True):
            picture = Image.open(io.BytesIO(content))
            if loaded:
                picture.load()
            assert torch.equal(images.read(picture, 1, range=range), images.read(content, 1, range=range))
    with pytest.raises(images.BrokenImage, match="does not say whether"):
        images.read(Image.open(io.BytesIO(_tiff(RGBN, 2))))
    scaled = Image.open(io.BytesIO(b"P5\n1 1\n4095\n" + struct.pack(">H", 1024)))
    assert images.read(scaled, 1, range=(0, 2048)).item() == 0
    with pytest.raises(ValueError, match="of PPM Pillow scales the values to 16 bits"):  # loaded: no more known
        images.read(scaled, 1, range=(0, 2048))


def test_sixteen_bit_transparency_is_white() -> None:
    content = _saved(Image.fromarray(np.array([[0, 16384]], np.uint16)), "PNG")
    at = content.find(b"IDAT") - 4
    clear = content[:at] + _chunk(b"tRNS", struct.pack(">H", 0)) + content[at:]
    assert images.read(clear, 1)[0, 0].tolist() == [[1.0, pytest.approx(-0.5, abs=1e-4)]]


# Damaged metadata


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _in_png(inserted: bytes) -> bytes:
    content = _saved(RED, "PNG")
    return content[:33] + inserted + content[33:]


def _in_jpeg(marker: int, data: bytes) -> bytes:
    content = _saved(RED, "JPEG")
    return content[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data + content[2:]


def _webp(kind: bytes, size: int) -> bytes:
    content = _saved(RED, "WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0", xmp=b"<x/>", icc_profile=b"123", lossless=True)
    at = content.find(kind) + 4
    return content[:at] + struct.pack("<I", size) + content[at + 4 :]


METADATA = {
    "text, checksum": lambda: _in_png(struct.pack(">I", 4) + b"tEXtabcdXXXX"),
    "text, length": lambda: _in_png(struct.pack(">I", 2**30) + b"tEXtabcdXXXX"),
    "text, of 10 MB": lambda: _in_png(_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7)))),
    "text, encoding": lambda: _in_png(_chunk(b"iTXt", b"\xff\xff\0\1\1bad")),
    "png profile": lambda: _in_png(_chunk(b"iCCP", b"a\0\0garbage")),
    "png exif": lambda: _in_png(_chunk(b"eXIf", b"MM\0*garbage")),
    "png short": lambda: _in_png(_chunk(b"pHYs", b"1") + _chunk(b"gAMA", b"1") + _chunk(b"acTL", b"1")),
    "exif": lambda: _in_jpeg(0xE1, b"Exif\0\0garbage"),
    "exif offsets": lambda: _in_jpeg(0xE1, b"Exif\0\0II*\0\x08\0\0\0" + b"\xff" * 42),
    "xmp": lambda: _in_jpeg(0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe"),
    "profile": lambda: _in_jpeg(0xE2, b"ICC_PROFILE\0\x01\x02bad"),
    "pictures": lambda: _in_jpeg(0xE2, b"MPF\0II*\0\x08\0\0\0" + b"\xff" * 42),
    "photoshop": lambda: _in_jpeg(0xED, b"Photoshop 3.0\x008BIM\x04\x04\xff\xff\xff\xff"),
    "adobe": lambda: _in_jpeg(0xEE, b"Adobe"),
    "webp exif": lambda: _webp(b"EXIF", 0xFFFF),
    "webp xmp": lambda: _webp(b"XMP ", 0xFFFF),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", METADATA)
def test_sound_pixels_behind_damaged_metadata_are_read(kind: str) -> None:
    read = images.to_uint8(images.read(METADATA[kind]()))[0]
    assert (read.int() - torch.tensor([200, 0, 0]).view(3, 1, 1)).abs().max() <= 2


def test_damaged_pixels_stay_broken() -> None:
    content = bytearray(_in_png(struct.pack(">I", 4) + b"tEXtabcdXXXX"))
    content[content.find(b"IDAT") + 12] ^= 255
    with pytest.raises(images.BrokenImage):
        images.read(bytes(content))


# Bounds


def _many_scans(count: int) -> bytes:
    content = _saved(Image.new("L", (64, 64), 99), "JPEG", progressive=True)
    return content[:-2] + content[content.rfind(b"\xff\xda") : -2] * count + b"\xff\xd9"


def _icon() -> bytes:
    inside = _saved(Image.new("L", (600, 600)), "PNG")
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(inside), 22) + inside


def _array(shape: str, data: int = 0) -> bytes:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00v\x00" + header.encode() + bytes(data)


VP8X = struct.pack("<4sI4s4sI", b"RIFF", 26, b"WEBP", b"VP8X", 10) + b"\x02\0\0\0" + b"\xfe\x3f\0\xfe\x3f\0" + bytes(4)


@pytest.mark.parametrize(
    "make, problem",
    [
        (lambda: _saved(Image.new("L", (1, 300_001)), "PNG"), r"1 x 300,001 pixels of PNG need"),
        (lambda: _saved(Image.new("L", (600, 600)), "GIF", save_all=True, append_images=[RED]), "600 pixels of GIF"),
        (lambda: VP8X, "16,383 x 16,383 pixels of WEBP need 5.4 GB to decode"),  # 34 bytes
        (lambda: _saved(Image.new("RGB", (450, 450)), "WEBP"), "450 x 450 pixels of WEBP"),
        (_icon, "600 x 600 pixels of ICO"),
        (lambda: _many_scans(3000), r"a JPEG of 3,0\d\d scans"),
        (lambda: _array("(10**6, 10**6)".replace("10**6", "1000000")), "cut short: 0 bytes of 8,000,000,000,000"),
        (lambda: _array("(400, 400)", 8 * 160_000), r"an array of shape \(400, 400\) needs"),
        (lambda: _array("(-1, 4)"), "objects, not numbers"),
    ],
)  # fmt: skip
def test_what_costs_too_much_is_named_before_it_is_decoded(make: Callable[[], bytes], problem: str) -> None:
    with pytest.raises(images.BrokenImage, match=problem) as error:
        images.read(make(), 3, range=(0, 1), max_pixels=300_000)
    assert "\n" not in str(error.value)


def test_a_larger_bound_admits_what_the_error_says() -> None:
    content = _saved(Image.new("RGB", (450, 450), (200, 0, 0)), "WEBP", lossless=True)
    with pytest.raises(images.BrokenImage, match=r"337500 admits it.*data.max_pixels, --max-pixels"):
        images.read(content, max_pixels=337_499)
    assert images.read(content, max_pixels=337_500).shape == (1, 3, 450, 450)


def test_ordinary_scans_are_read_and_counted_right() -> None:
    assert pictures.scans(_saved(RED, "JPEG")) == 1
    content = _many_scans(5)
    count = pictures.scans(content)
    assert count == pictures.scans(_many_scans(0)) + 5
    hidden = content[:2] + b"\xff\xe1" + struct.pack(">H", 2 + 2000) + b"\xff\xda" * 1000 + content[2:]
    assert pictures.scans(hidden) == count  # not those of a preview inside the metadata
    assert images.read(hidden, 1, max_pixels=2 * 64 * 64).shape == (1, 1, 64, 64)


def test_pictures_above_pillows_bound_raise_no_warning(recwarn: pytest.WarningsRecorder, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert images.read(_saved(RED, "PNG")).shape == (1, 3, 8, 8)
    assert not recwarn.list


def test_large_pictures_are_converted_in_strips_that_join(monkeypatch) -> None:
    from tokenizers_vq import pixels

    generator = np.random.default_rng(0)
    clear = Image.fromarray(generator.integers(0, 256, (9, 7, 4), dtype=np.uint8))
    palette = RED.quantize(4)
    palette.info["transparency"] = 0
    for picture in (clear, palette, clear.convert("CMYK"), clear.convert("LA"), clear.convert("1")):
        for channels in (1, 3):
            whole = images.read(picture, channels)
            monkeypatch.setattr(pixels, "_STRIP", 15)
            assert torch.equal(images.read(picture, channels), whole)
            monkeypatch.undo()
    array = generator.random((9, 7, 3))
    whole = images.read(array)
    monkeypatch.setattr(pixels, "_STRIP", 15)
    assert torch.equal(images.read(array), whole)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match=r"a\.png: it is a pipe or a device"):
        images.read(tmp_path / "a.png")
