"""Files that would cost too much are named and passed over; what is read is held one picture at a time."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tokenizers_vq.config import ConfigError
from tokenizers_vq.data import DataConfig, loading
from tokenizers_vq.data.loading import evaluation_batches, training_batches
from tokenizers_vq.data.transforms import augment


def _png(width: int, height: int, value: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


VP8X = struct.pack("<4sI4s4sI", b"RIFF", 26, b"WEBP", b"VP8X", 10) + b"\x02\0\0\0" + b"\xfe\x3f\0\xfe\x3f\0" + bytes(4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three small pictures, one of 1 x 3000, a WebP of 34 bytes that says 16383 x 16383, floats with NaN."""
    path = tmp_path / "pictures"
    path.mkdir()
    for number in range(3):
        (path / f"{number}.png").write_bytes(_png(20, 16, 80 * number))
    (path / "long.png").write_bytes(_png(3000, 1))
    (path / "bomb.webp").write_bytes(VP8X)
    np.save(path / "nan.npy", np.full((16, 16, 3), np.nan, np.float32))
    return path


def _read(config: DataConfig) -> tuple[list[str], dict[str, str]]:
    batches = evaluation_batches(config, image_size=16, channels=3, batch_size=2)
    keys = [key for batch in batches for key in batch["keys"]]
    return keys, batches.broken


def test_what_costs_too_much_is_named_and_the_rest_goes_on(folder: Path) -> None:
    config = DataConfig(path=str(folder), max_pixels=1000, workers=0)
    keys, broken = _read(config)
    assert keys == ["0.png", "1.png", "2.png"] and set(broken) == {"bomb.webp", "long.png", "nan.npy"}
    assert broken["long.png"].startswith("3,000 x 1 pixels of PNG need") and "3000 admits it" in broken["long.png"]
    assert "16,383 x 16,383 pixels of WEBP need 5.4 GB" in broken["bomb.webp"]
    assert broken["nan.npy"].startswith("NaN values")
    keys, broken = _read(config.replace(max_pixels=3000))
    assert "long.png" in keys and set(broken) == {"bomb.webp", "nan.npy"}
    assert "long.png" in _read(config.replace(max_pixels=None))[0]
    ranged, broken = _read(config.replace(range=(0.0, 1.0)))
    assert len(ranged) == 3 and broken["nan.npy"].startswith("NaN values")
    for batch in training_batches(config, image_size=16, channels=3, batch_size=6):
        assert batch["images"].shape == (6, 3, 16, 16) and set(batch["broken"]) == {"bomb.webp", "long.png", "nan.npy"}
        break


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(_png(16, 16))
    os.mkfifo(tmp_path / "pipe.png")
    assert _read(DataConfig(path=str(tmp_path), workers=0))[0] == ["good.png"]


@pytest.mark.parametrize("field, value", [("max_pixels", 0), ("range", [0, float("inf")]), ("range", [1, 1])])
def test_bounds_that_cannot_be(field: str, value) -> None:
    with pytest.raises((ConfigError, ValueError), match=field):
        DataConfig(path="x", **{field: value})


def test_a_stream_holds_one_picture_at_a_time(tmp_path: Path, monkeypatch) -> None:
    """A batch of large animations would not fit into memory; a broken one is made good by the readable ones in turn."""
    rows = [_png(20, 16, 200), b"broken", _png(20, 16, 100)]
    pq.write_table(pa.table({"image": pa.array(rows, pa.binary())}), tmp_path / "a.parquet")
    config = DataConfig(path=str(tmp_path / "a.parquet"), streaming=True, image_column="image", workers=0)
    events: list[str] = []

    def decoded(*arguments):
        events.append("decode")
        return decode(*arguments)

    def cut(*arguments):
        events.append("cut")
        return augment(*arguments)

    decode = loading.decode
    monkeypatch.setattr(loading, "decode", decoded)
    monkeypatch.setattr(loading, "augment", cut)
    batch = next(iter(training_batches(config, image_size=16, channels=3, batch_size=3)))
    held = most = 0
    for event in events:
        held = held + 1 if event == "decode" else 0
        most = max(most, held)
    assert most <= 2 and events.count("cut") == 3  # a broken one holds nothing
    assert len(batch["keys"]) == 3 and len(set(batch["keys"])) == 2 and batch["keys"][2] == batch["keys"][0]
    values = [round(float((image[0].mean() + 1) * 127.5)) for image in batch["images"]]
    assert set(values) == {100, 200} and values[2] == values[0]
