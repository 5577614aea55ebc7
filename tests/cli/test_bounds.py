"""Pictures that would cost too much, from the command line."""

from __future__ import annotations

import numpy as np
from PIL import Image

import tokenizers_vq as tvq

CPU = ("--device", "cpu", "--precision", "fp32")


def test_large_pictures_are_named_and_admitted_by_an_option(tvq_command, model, photos, tmp_path) -> None:
    Image.new("RGB", (900, 700)).save(photos / "train" / "large.png")
    np.save(photos / "train" / "nan.npy", np.full((32, 32, 3), np.nan, np.float32))
    asked = ("encode", model, photos, "--split", "train", *CPU)
    done = tvq_command(*asked, "--max-pixels", "10000", "--out", tmp_path / "a")
    assert done.status == 0 and "3 images in 1 shards, 2 skipped" in done.out, done.err
    assert "large.png: 900 x 700 pixels of PNG need" in done.err and "630000 admits it" in done.err
    assert "nan.npy: NaN values" in done.err
    done = tvq_command(*asked, "--max-pixels", "630000", "--out", tmp_path / "b")
    assert "4 images in 1 shards, 1 skipped" in done.out, done.err
    refused = tvq_command(*asked, "--max-pixels", "0", "--out", tmp_path / "c")
    assert refused.status == 2 and "max_pixels: must be 1 or more" in refused.err
    evaluated = ("evaluate", model, "--data", photos, "--split", "train", "--backbone", "none", "--lpips", "none")
    done = tvq_command(*evaluated, "--max-pixels", "10000", *CPU)
    assert done.status == 0 and "large.png" in done.err and tvq.images.MAX_PIXELS == 89_478_485
