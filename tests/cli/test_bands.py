"""Images of one, five and thirteen bands, 16-bit and in a range of their own, through every verb."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tokenizers_vq as tvq
from tokenizers_vq.data.shards import read_codes
from tokenizers_vq.resizing import resize_center_crop

CPU = ("--device", "cpu", "--precision", "fp32")
RANGE = ("--range", "-100", "3000")


def _folder(folder: Path, bands: int, dtype: str, first: bool) -> Path:
    """Nine smooth arrays, bands last or first, within -100 to 3000."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(9):
        coarse = random.uniform(-100, 3000, (3, 3, bands)).repeat(6, 0).repeat(6, 1).astype(dtype)
        np.save(folder / f"{number}.npy", np.moveaxis(coarse, -1, 0) if first else coarse)
    return folder


@pytest.mark.parametrize("bands, dtype, first", [(1, "float32", False), (5, "int16", True), (13, "float64", False)])
def test_train_encode_decode_evaluate(tvq_command, tmp_path, bands: int, dtype: str, first: bool) -> None:
    data, run, codes, back = (tmp_path / name for name in ("data", "run", "codes", "back"))
    _folder(data, bands, dtype, first)
    small = (
        "model.image_size=16",
        "model.encoder.width=16",
        "model.decoder.width=16",
        "batch_size=4",
        "precision=fp32",
    )
    options = (f"data.path={data}", "data.range=[-100, 3000]", "data.workers=0", "trackers=[]", "image_every=1")
    done = tvq_command(
        "train", "vqvae-tiny-64", f"model.channels={bands}", "steps=2", *small, *options, "--out", run
    )  # fmt: skip
    assert done.status == 0, done.err
    assert tvq.load(run).config.channels == bands

    done = tvq_command("encode", run, data, "--out", codes, *RANGE, *CPU)
    assert done.status == 0, done.err
    assert "9 images in 1 shards" in done.out and read_codes(codes).info["data"]["range"] == [-100, 3000]
    assert tvq_command("encode", run, data, "--out", codes, *RANGE, *CPU).status == 0
    other = tvq_command("encode", run, data, "--out", codes, "--range", "0", "3000", *CPU)
    assert other.status == 2 and "made with data.range = [-100.0, 3000.0], now [0.0, 3000.0]" in other.err

    done = tvq_command("decode", codes, "--out", back, *CPU)
    assert done.status == 0, done.err
    tokenizer = tvq.load(run)
    for number in (0, 8):
        image = resize_center_crop(tvq.images.read(data / f"{number}.npy", bands, range=(-100, 3000))[0], 16)
        wanted = tokenizer.decode(tokenizer.encode(image[None]))[0].permute(1, 2, 0).numpy() * 1550 + 1450
        decoded = np.load(back / f"{number}.npy")
        assert decoded.shape == (16, 16, bands) and decoded.dtype == np.float32
        np.testing.assert_allclose(decoded, wanted, atol=0.1)

    done = tvq_command(
        "evaluate", run, "--data", data, *RANGE, "--out", tmp_path / "e.json", "--backbone", "none", *CPU
    )  # fmt: skip
    assert done.status == 0, done.err
    result = json.loads((tmp_path / "e.json").read_text())
    assert result["data"]["range"] == [-100, 3000] and result["data"]["channels"] == bands
    assert {"psnr", "ssim"} <= result["metrics"].keys()
    assert tvq_command("reconstruct", run, "--data", data, *RANGE, "--out", tmp_path / "pairs", *CPU).status == 0

    for verb in (("encode", run, data, "--out", tmp_path / "x"), ("evaluate", run, "--data", data)):
        refused = tvq_command(*verb, *CPU)
        assert refused.status == 2 and "--range LOW HIGH" in refused.err and refused.err.count("tvq:") == 1


def test_bands_and_ranges_that_cannot_be(tvq_command, model, tmp_path) -> None:
    data = _folder(tmp_path / "data", 5, "float32", False)
    refused = tvq_command("encode", model, data, "--out", tmp_path / "x", *RANGE, *CPU)
    assert refused.status == 2 and "has 5 channels, 3 are wanted" in refused.err
    refused = tvq_command("encode", model, data, "--out", tmp_path / "x", "--range", "3", "3", *CPU)
    assert refused.status == 2 and "range: needs black below white, got [3.0, 3.0]" in refused.err
