"""Preprocessing is exact where nothing has to change, and augmentation is a pure function of its key."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tokenizers_vq.data.sources import DataConfig
from tokenizers_vq.data.transforms import augment
from tokenizers_vq.resizing import covering, pair, resize, resize_center_crop


def _noise(channels: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (channels, height, width), dtype=torch.uint8)


@pytest.mark.parametrize("size", [16, (16, 24)])
@pytest.mark.parametrize("height, width", [(16, 16), (40, 64), (64, 40), (1, 1), (5, 200), (200, 5), (7, 9)])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_any_image_comes_out_at_the_size(channels: int, height: int, width: int, size) -> None:
    image = _noise(channels, height, width)
    expected = (channels, *((size, size) if isinstance(size, int) else size))
    assert resize_center_crop(image, size).shape == expected
    floating = resize_center_crop(image.float() / 127.5 - 1, size)
    assert floating.shape == expected and floating.abs().max() <= 1
    for crop in ("random_resized", "random", "center"):
        assert augment(image, DataConfig(path="x", crop=crop), size, "0/0/0").shape == expected


def test_the_right_size_is_left_alone() -> None:
    image = _noise(3, 16, 16)
    assert torch.equal(resize_center_crop(image, 16), image)
    wide = _noise(3, 16, 20)
    assert torch.equal(resize_center_crop(wide, 16), wide[:, :, 2:18])


def test_resizing_is_antialiased_as_pillow_does() -> None:
    image = _noise(3, 96, 128)
    picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((43, 32), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[:, :, 5:37].int()
    assert (resize_center_crop(image, 32).int() - expected).abs().max() <= 2
    # sixteen-bit images take the floating path; both must show the same picture
    floating = resize_center_crop(image.float() / 127.5 - 1, 32)
    assert ((floating + 1) * 127.5 - expected).abs().max() <= 2


@pytest.mark.parametrize("height, width, size", [(7, 3000, 64), (1, 8000, 64), (2000, 3, (32, 48)), (60, 3000, 16)])
def test_of_a_long_picture_only_the_window_is_computed(height: int, width: int, size) -> None:
    """Within a level of the whole picture scaled in floating point, then cropped."""
    image = _noise(3, height, width) // 2 + 64  # what overshoots is clipped between two passes over 8 bits
    floating = image.float() / 127.5 - 1
    rows, columns = covering(image, *pair(size))
    top, left = (rows - pair(size)[0]) // 2, (columns - pair(size)[1]) // 2
    whole = resize(floating, rows, columns)[:, top : top + pair(size)[0], left : left + pair(size)[1]]
    torch.testing.assert_close(resize_center_crop(floating, size), whole, atol=1e-3, rtol=0)
    levels = (whole + 1) * 127.5
    assert (resize_center_crop(image, size) - levels).abs().max() < 1.5
    config = DataConfig(path="x", crop="random", flip=False)
    view = augment(floating, config, size, "0/0/0")
    assert view.shape == (3, *pair(size)) and torch.equal(view, augment(floating, config, size, "0/0/0"))


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_long_picture_costs_what_its_window_does() -> None:
    """1 x 8000 scaled to a height of 512 would be 4,096,000 wide: 25 GB of floats."""
    from tests.fuzz import harness

    image = torch.zeros(3, 1, 8000)
    calls = (
        lambda: resize_center_crop(image, 512),
        lambda: augment(image, DataConfig(path="x", crop="random"), 512, "0"),
    )
    assert not harness.search(range(2), lambda number: calls[number], lambda call: call(), (), memory=2**27)


def test_augmentation_is_pure_and_leaves_the_global_generators_alone() -> None:
    image, config = _noise(3, 40, 50), DataConfig(path="x")
    before = torch.get_rng_state()
    views = [augment(image, config, 16, f"0/0/{index}") for index in range(20)]
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(view, augment(image, config, 16, f"0/0/{index}")) for index, view in enumerate(views))
    assert len({view.numpy().tobytes() for view in views}) == 20


def test_flip_and_centre_crop() -> None:
    image = _noise(3, 16, 16)
    config = DataConfig(path="x", crop="center")
    flips = [torch.equal(augment(image, config, 16, str(key)), image.flip(2)) for key in range(200)]
    assert 70 < sum(flips) < 130
    plain = config.replace(flip=False)
    assert all(torch.equal(augment(image, plain, 16, str(key)), image) for key in range(5))


def test_random_crop_reaches_every_place() -> None:
    columns = torch.arange(20, dtype=torch.uint8).expand(3, 16, 20).contiguous()
    config = DataConfig(path="x", crop="random", flip=False)
    assert {int(augment(columns, config, 16, str(key))[0, 0, 0]) for key in range(100)} == {0, 1, 2, 3, 4}
