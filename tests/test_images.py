"""Pictures of every kind become float images in [-1, 1]; what is none is refused in one line."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import shared
from tokenizers_vq import images

BROKEN = {"truncated.jpg", "empty.png", "text.jpg"}
GREY = {"grey.jpg", "grey16.png", "grey16.tif", "one-bit.png", "grey-alpha.png"}


def _mixed() -> list[Path]:
    root = shared("data/mixed-folder")
    return [path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix != ".md"]


def test_every_good_file_reads_and_every_broken_one_is_named() -> None:
    good, broken = 0, set()
    for path in _mixed():
        try:
            image = images.read(path)
        except images.BrokenImage as error:
            assert str(path) in str(error) and error.reason and "\n" not in str(error)
            broken.add(path.name)
            continue
        images.check(image, 3)
        assert image.dtype == torch.float32 and image.shape[:2] == (1, 3)
        assert image.abs().max() <= 1
        assert path.name not in GREY or torch.equal(image[:, :1], image[:, 1:2])
        assert images.read(path, channels=1).shape == (1, 1, *image.shape[2:])
        good += 1
    assert good == 33 and broken == BROKEN


@pytest.mark.parametrize("name", ["grey16.png", "grey16.tif"])
def test_sixteen_bits_are_not_clipped(name: str) -> None:
    path = shared(f"data/mixed-folder/{name}")
    stored = torch.from_numpy(np.asarray(Image.open(path)).astype(np.float64))
    assert stored.max() > 20000 and stored.unique().numel() > 150
    torch.testing.assert_close(images.read(path, 1)[0, 0].double(), stored / 65535 * 2 - 1, atol=1e-6, rtol=0)


def test_sixteen_bits_span_the_range(tmp_path: Path) -> None:
    levels = np.array([[0, 1, 32767, 65535]], dtype=np.uint16)
    for suffix in (".png", ".tif"):
        Image.fromarray(levels).save(tmp_path / f"a{suffix}")
        expected = torch.from_numpy(levels.astype(np.float64) / 65535 * 2 - 1).float()
        torch.testing.assert_close(images.read(tmp_path / f"a{suffix}", 1)[0, 0], expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation: int) -> None:
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:4, :4] = 255
    stored = {2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2)}
    stored |= {
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    array = stored.get(orientation, lambda a: a)(upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for form in ("PNG", "TIFF"):
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(array)).save(file, form, exif=exif)
        for source in (file.getvalue(), Image.open(file)):
            read = images.to_uint8(images.read(source))[0].permute(1, 2, 0)
            assert torch.equal(read, torch.from_numpy(upright)), form


def test_transparency_is_laid_on_white() -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0, 3] = 255
    rgba[0, 1, 3] = 51
    grey = images.read(Image.fromarray(rgba), 1)[0, 0]
    torch.testing.assert_close(grey, torch.tensor([[-1.0, 0.6], [1.0, 1.0]]), atol=1e-6, rtol=0)
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([255, 0, 0])
    palette.info["transparency"] = 0
    assert images.read(palette).unique().tolist() == [1.0]


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert images.to_uint8(images.read(file.getvalue()))[0, :, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("bands, channels", [(4, 3), (2, 1), (4, 1), (2, 3)])
def test_a_band_more_is_never_taken_for_transparency(dtype: str, bands: int, channels: int) -> None:
    for array in (np.ones((8, 9, bands), dtype), np.ones((bands, 8, 9), dtype)):
        with pytest.raises(ValueError, match=f"has {bands} channels, {channels} are wanted") as error:
            images.read(array, channels)
        assert ("channels=" in str(error.value)) == (bands == channels + 1)
        assert images.read(array, bands).shape == (1, bands, 8, 9)


def test_where_both_fit_the_channels_are_last() -> None:
    assert images.read(np.zeros((3, 9, 3), np.uint8)).shape == (1, 3, 3, 9)
    assert images.read(np.zeros((3, 9, 4), np.uint8)).shape == (1, 3, 9, 4)  # 4 cannot be: colour comes first
    assert images.read(np.zeros((4, 9, 3), np.uint8)).shape == (1, 3, 4, 9)


RED = np.full((4, 5, 3), [200, 0, 51], np.uint8)


def _forms(path: Path) -> dict:
    Image.fromarray(RED).save(path)
    content = path.read_bytes()
    return {
        "path": path,
        "string": str(path),
        "bytes": content,
        "bytearray": bytearray(content),
        "memory": memoryview(content),
        "file": io.BytesIO(content),
        "PIL": Image.fromarray(RED),
        "array": RED,
        "channels first": np.moveaxis(RED, -1, 0),
        "uint16": RED.astype(np.uint16) * 257,
        "float": RED / 255,
        "tensor": torch.from_numpy(RED),
        "tensor, channels first": torch.from_numpy(RED).permute(2, 0, 1),
        "uint16 tensor": torch.from_numpy(RED.astype(np.uint16) * 257),
        "lists": RED.tolist(),
        "lists of floats": (RED / 255).tolist(),
        "lists of uint16": (RED.astype(int) * 257).tolist(),
        "datasets": {"bytes": content, "path": None},
        "datasets, path": {"bytes": None, "path": str(path)},
    }


def test_whatever_python_holds_gives_the_same_image(tmp_path: Path) -> None:
    forms = _forms(tmp_path / "a.png")
    expected = images.from_uint8(torch.from_numpy(RED)).permute(2, 0, 1)[None]
    for name, source in forms.items():
        torch.testing.assert_close(images.read(source), expected, atol=1e-6, rtol=0, msg=name)
    forms["file"].seek(0)
    batch = images.read(list(forms.values()))
    assert batch.shape == (len(forms), 3, 4, 5) and (batch - expected).abs().max() < 1e-6
    for four in (np.stack([RED, RED]), torch.from_numpy(np.stack([RED, RED])), (forms["array"], forms["path"])):
        assert torch.equal(images.read(four), expected.repeat(2, 1, 1, 1))
    ranged = images.read(torch.from_numpy(RED).to(torch.bfloat16), range=(0, 255))
    torch.testing.assert_close(ranged, expected, atol=1e-2, rtol=0)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
def test_arrays_of_five_channels(tmp_path: Path, dtype: str) -> None:
    unit = np.random.default_rng(0).random((6, 7, 5))
    scale = {"uint8": 255, "uint16": 65535}.get(dtype, 1)
    array = (unit * scale).round().astype(dtype) if scale > 1 else unit.astype(dtype)
    np.save(tmp_path / "bands.npy", array)
    image = images.read(tmp_path / "bands.npy", channels=5)
    expected = torch.from_numpy(array.astype(np.float64) / scale * 2 - 1).float().permute(2, 0, 1)[None]
    torch.testing.assert_close(image, expected, atol=1e-6, rtol=0)
    assert torch.equal(images.read((tmp_path / "bands.npy").read_bytes(), channels=5), image)
    with pytest.raises(ValueError, match="5 channels, 3 are wanted"):
        images.read(tmp_path / "bands.npy")
    first = np.ascontiguousarray(np.moveaxis(array, -1, 0))
    assert torch.equal(images.read(first, channels=5), image)


@pytest.mark.parametrize("channels", [1, 3, 5, 13])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int64", "float32", "float64"])
def test_a_range_maps_every_dtype(channels: int, dtype: str) -> None:
    """`range` says black and white; arrays come back by `to_array` to the dtype's precision."""
    low, high = (-1000.0, 4000.0) if dtype != "uint8" and not dtype.startswith("uint") else (10.0, 200.0)
    array = np.random.default_rng(0).uniform(low, high, (4, 6, channels)).round().astype(dtype)
    image = images.read(array, channels, range=(low, high))
    expected = (array.astype(np.float64) - low) / (high - low) * 2 - 1
    torch.testing.assert_close(image[0].permute(1, 2, 0).double(), torch.from_numpy(expected), atol=1e-6, rtol=0)
    assert np.array_equal(images.to_array(image[0], (low, high)).round(), array.astype(np.float32))
    beyond = np.full((2, 2, channels), high + 50).astype(dtype)
    assert images.read(beyond, channels, range=(low, high)).unique().tolist() == [1.0]


def _colour_png(pixels: np.ndarray) -> bytes:
    """16-bit RGB, which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bit_colour_is_read_with_eight_and_takes_no_range() -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (4, 5, 3)).astype(np.uint16)
    read = images.to_uint8(images.read(_colour_png(pixels)))[0].permute(1, 2, 0).numpy()
    assert np.array_equal(read, pixels >> 8)
    with pytest.raises(ValueError, match=r"of 16-bit colour Pillow reads 8 bits.*store it as \.npy"):
        images.read(_colour_png(pixels), range=(0, 4095))


def test_a_range_reads_twelve_bits_in_sixteen(tmp_path: Path) -> None:
    levels = np.array([[0, 1, 2048, 4095]], dtype=np.uint16)
    for suffix in (".png", ".tif"):
        Image.fromarray(levels).save(tmp_path / f"a{suffix}")
        image = images.read(tmp_path / f"a{suffix}", 1, range=(0, 4095))
        torch.testing.assert_close(image[0, 0], torch.from_numpy(levels / 4095 * 2 - 1).float(), atol=1e-6, rtol=0)
    eight = Image.new("L", (1, 1), 51)
    assert images.to_uint8(images.read(eight, 1, range=(0, 51))).item() == 51  # 8-bit pictures keep their own


@pytest.mark.parametrize(
    "make, problem",
    [
        (lambda: images.read("nowhere.png"), "no image file at nowhere.png"),
        (lambda: images.read(np.zeros((4, 4, 3)) - 0.5), "read as .0, 1."),
        (lambda: images.read(np.zeros((4, 4, 3), np.int64)), r"int64 pixels need their range \(data.range="),
        (lambda: images.read(np.zeros((4, 4, 3)) + 7.0), r"values span 7 to 7; give their range \(data.range="),
        (lambda: images.read(np.full((4, 4, 3), np.nan), range=(0, 1)), "NaN values"),
        (lambda: images.read(np.zeros((4, 4, 3), complex), range=(0, 1)), "complex128 pixels"),
        (lambda: images.read(np.zeros((1, 4, 4, 3, 1), np.uint8)), r"expected .H, W., .H, W, C. or .C, H, W."),
        (lambda: images.read(np.zeros((4, 4, 3), complex)), "cannot read complex128 pixels"),
        (lambda: images.read(np.array([["a"]])), "cannot read <U1 pixels"),
        (lambda: images.read(np.full((4, 4, 3), np.nan)), "NaN values"),
        (lambda: images.read(np.full((4, 4, 3), np.inf)), "infinite values"),
        (lambda: images.read(np.full((4, 4, 3), -np.inf), range=(0, 1)), "infinite values"),
        (lambda: images.read(np.ma.masked_equal(np.zeros((4, 4)), 0)), "masked values"),
        (lambda: images.read(torch.zeros(3, 4, 4)), "an image already.*from_float01.x.*range="),
        (lambda: images.read([[[1, 2, 3], [1, 2]]]), "nested lists that make no array"),
        (lambda: images.read([[[1, None, 3]]]), "something else than numbers"),
        (lambda: images.read([]), "an empty list"),
        (
            lambda: images.read([np.zeros((4, 4, 3)), np.zeros((4, 5, 3))]),
            "4 x 4, 4 x 5. make no batch; give their size=",
        ),
        (lambda: images.read([np.zeros((4, 4)), np.full((4, 4), 2.0)]), "picture 1: floats are read as"),
        (lambda: images.read(None), "null, no picture"),
        (lambda: images.read(3), "cannot read a value of type int"),
        (lambda: images.read("."), r"no image file at \.: it is a folder"),
        (lambda: images.read("https://x.org/a.png"), "no image file at https://x.org/a.png"),
        (lambda: images.read(np.zeros((4, 4)), range=(1, 1)), "black below white"),
        (lambda: images.read(np.zeros((4, 4)), range=(0, float("inf"))), "two finite numbers"),
        (
            lambda: images.read(np.zeros((4, 4)), size=0),
            "an image size is one whole number or two .height, width., at least 1",
        ),
        (lambda: images.read(np.zeros((4, 4)), size=8.5), "an image size is .* got 8.5"),
        (lambda: images.read(np.zeros((4, 4)), size=(8, 8, 8)), "an image size is"),
        (lambda: images.read(np.zeros((4, 4)), size="8"), "an image size is"),
        (lambda: images.read(Image.new("RGB", (0, 5)), size=8), "0 x 5 pixels"),
        (lambda: images.to_array(torch.zeros(1, 3, 4, 4)), "one floating image"),
        (lambda: images.read(Image.new("RGB", (4, 4)), 5), "store it as .npy"),
        (lambda: images.read(np.zeros((4, 4), np.uint8), 0), "at least 1"),
        (lambda: images.from_uint8(torch.zeros(3, 4, 4)), "from_float01"),
        (lambda: images.from_float01(torch.zeros(3, 4, 4, dtype=torch.uint8)), "from_uint8"),
        (lambda: images.to_pil(torch.zeros(2, 3, 4, 4)), "one image"),
        (lambda: images.to_pil(torch.zeros(2, 4, 4)), "1 or 3 channels"),
        (lambda: images.read(np.zeros((4, 4, 3), np.uint8), range=255), "range: needs two finite numbers, got 255"),
        (lambda: images.read("a\x1b[31m.png"), r"no image file at a\\x1b"),
    ],
)
def test_refusals_are_one_line(make, problem: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=problem) as error:
        make()
    assert "\n" not in str(error.value)


def test_uint8_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(images.to_uint8(images.from_uint8(levels)), levels)
    assert images.to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
    assert images.from_float01(torch.tensor([0.0, 1.0])).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("channels", [1, 3])
def test_pil_round_trip(channels: int) -> None:
    image = images.from_uint8(torch.randint(0, 256, (1, channels, 5, 7), dtype=torch.uint8))
    for one in (image, image[0]):
        assert torch.equal(images.read(images.to_pil(one), channels), image)


@pytest.mark.parametrize(
    "batch, problem",
    [
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), r"images\.from_uint8\(x\)"),
        (torch.full((1, 3, 4, 4), 255), r"images\.from_uint8\(x\.to\(torch\.uint8\)\)"),
        (torch.full((1, 3, 4, 4), 256), r"images\.read\(x, range=\(black, white\)\)"),
        (torch.full((1, 3, 4, 4), -1), r"images\.read\(x, range="),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint16), r"images\.read\(x, range="),
        (torch.zeros(1, 3, 4, 4, dtype=torch.bool), r"images\.from_float01\(x\.float\(\)\)"),
        ([torch.zeros(3, 4, 4)], r"got list; convert a path, PIL image or array with images\.read\(x\)"),
        ("cat.jpg", r"got str; convert a path"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.complex64), r"give its real part, x\.real"),
        (torch.full((1, 3, 4, 4), 255.0), "images must lie in .-1, 1."),
        (torch.full((1, 3, 4, 4), float("nan")), "NaN"),
        (torch.full((1, 3, 4, 4), float("-inf")), "infinite"),
        (torch.zeros(1, 4, 4, 3), r"permute\(0, 3, 1, 2\)"),
        (torch.zeros(3, 4, 4), r"unsqueeze\(0\)"),
        (torch.zeros(4, 4), "2 dimensions"),
        (torch.zeros(1, 2, 8, 8), "channels=3"),
    ],
)
def test_check_names_the_way_out(batch: torch.Tensor, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as error:
        images.check(batch, 3)
    assert "\n" not in str(error.value)


def test_check_lets_images_pass() -> None:
    images.check(torch.zeros(2, 3, 4, 4), 3)
    images.check(torch.full((1, 3, 4, 4), 1.2), 3)
    images.check(torch.zeros(1, 5, 8, 3, dtype=torch.bfloat16), 5)
    images.check(torch.zeros(0, 3, 4, 4), 3)
    compiled = torch.compile(lambda x: (images.check(x, 3), x + 1)[1], fullgraph=True, backend="eager")
    assert compiled(torch.zeros(1, 3, 4, 4)).shape == (1, 3, 4, 4)


def test_images_in_zero_to_one_are_asked_about_once() -> None:
    images._ask_for_the_range.cache_clear()
    unit = torch.rand(2, 3, 4, 4)
    with pytest.warns(
        UserWarning, match=r"in \[0, 1\], where \[-1, 1\] is expected: did you mean images \* 2 - 1\?"
    ) as said:
        images.check(unit * 2 - 1, 3)
        images.check(unit - 0.01, 3)
        images.check(unit * 1.1, 3)
        images.check(unit, 3)
        images.check(unit, 3)
    assert len(said) == 1


def test_broken_image_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(images.BrokenImage("a.png", "cut\nshort")))
    assert (error.name, error.reason) == ("a.png", "cut short")


def test_a_picture_is_read_at_a_size(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((30, 50, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    assert images.read(tmp_path / "a.png", size=16).shape == (1, 3, 16, 16)
    assert images.read(tmp_path / "a.png", channels=1, size=(8, 64)).shape == (1, 1, 8, 64)
    assert images.read(tmp_path / "a.png").shape == (1, 3, 30, 50)
    ramp = np.linspace(-1, 3, 900, dtype=np.float32).reshape(30, 30, 1).repeat(5, axis=2)
    small = images.read(ramp, channels=5, range=(-1, 3), size=15)
    assert small.shape == (1, 5, 15, 15) and small.abs().max() <= 1 and small[0, 0, 0, 0] < -0.9
