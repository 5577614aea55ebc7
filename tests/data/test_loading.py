"""What a step sees depends on data, config, seed and step alone; evaluation sees everything once."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import subprocess
import sys
from itertools import chain, islice
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import ROOT, shared
from tokenizers_vq import images
from tokenizers_vq.data.loading import TrainingSet, evaluation_batches, training_batches
from tokenizers_vq.data.sources import DataConfig, open_source


def _train(config: DataConfig, micro_batches: int, **options) -> list[dict]:
    settings = {"image_size": 16, "channels": 3, "batch_size": 8, "seed": 5} | options
    return list(islice(training_batches(config, **settings), micro_batches))


def _same(left: list[dict], right: list[dict]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a["images"], b["images"]) and a["keys"] == b["keys"] and torch.equal(a["labels"], b["labels"])
        for a, b in zip(left, right, strict=True)
    )


def test_batches_are_images(pictures: Path) -> None:
    state = torch.get_rng_state()
    for batch in _train(DataConfig(path=str(pictures), workers=0), 4):
        images.check(batch["images"], 3)
        assert batch["images"].shape == (8, 3, 16, 16) and batch["labels"].dtype == torch.int64
        assert [key.startswith("b/") for key in batch["keys"]] == batch["labels"].bool().tolist()
    assert torch.equal(state, torch.get_rng_state())


def test_resume_with_any_number_of_workers(pictures: Path) -> None:
    config = DataConfig(path=str(pictures), workers=0)
    straight = _train(config, 14, accumulate=2)
    assert len({batch["images"].numpy().tobytes() for batch in straight}) == 14
    for workers in (0, 1, 2):
        resumed = _train(config.replace(workers=workers), 8, accumulate=2, start=3)
        assert _same(straight[6:], resumed)
    assert not _same(straight, _train(config, 14, accumulate=2, seed=6))


def test_two_processes_see_one_processs_batches(pictures: Path) -> None:
    config = DataConfig(path=str(pictures), workers=0)
    whole = _train(config, 5)
    halves = [_train(config, 10, accumulate=2, world=2, rank=rank) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        parts = [micro for half in halves for micro in half[2 * step : 2 * step + 2]]
        assert torch.equal(torch.cat([part["images"] for part in parts]), batch["images"])


def test_the_next_good_index_takes_a_broken_ones_place(pictures: Path) -> None:
    config = DataConfig(path=str(pictures), workers=0)
    batches = training_batches(config, image_size=16, channels=3, batch_size=8, seed=5)
    keys = [key for batch in islice(batches, 3) for key in batch["keys"]]
    assert sorted(keys) == sorted(
        [f"{'a' if n < 12 else 'b'}/{n:02d}.png" for n in range(24) if n not in (5, 6)] + ["a/07.png"] * 2
    )
    assert set(batches.broken) == {"a/05.png", "a/06.png"}
    parallel = training_batches(config.replace(workers=2), image_size=16, channels=3, batch_size=8, seed=5)
    assert [key for batch in islice(parallel, 3) for key in batch["keys"]] == keys
    assert parallel.broken == batches.broken


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_stop_the_run_if_asked_to(pictures: Path, workers: int) -> None:
    config = DataConfig(path=str(pictures), on_broken="stop", workers=workers)
    with pytest.raises(images.BrokenImage, match=r"a/0[56].png: not a readable image") as error:
        _train(config, 3)
    assert "\n" not in str(error.value)
    with pytest.raises(images.BrokenImage, match=r"a/05.png"):
        list(evaluation_batches(config, image_size=16, channels=3, batch_size=4))


@pytest.mark.parametrize("workers", [0, 2])
def test_other_failures_of_loader_processes_are_one_line(pictures: Path, workers: int) -> None:
    config = DataConfig(path=str(pictures), workers=workers)
    with pytest.raises(ValueError, match="a picture gives 1 or 3 channels, not 5") as error:
        _train(config, 1, channels=5)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="does not divide by 3 processes"):
        _train(config, 1, world=3)


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no picture")
    with pytest.raises(ValueError, match="no image can be read"):
        _train(DataConfig(path=str(tmp_path), workers=0), 1)
    batches = evaluation_batches(DataConfig(path=str(tmp_path)), image_size=16, channels=3, batch_size=4)
    with pytest.raises(ValueError, match=r"no image can be read; the first, a.jpg: not a picture"):
        list(batches)
    part = evaluation_batches(DataConfig(path=str(tmp_path)), image_size=16, channels=3, batch_size=4, shard=(0, 2))
    assert list(part) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_everything_once_in_order(workers: int) -> None:
    config = DataConfig(path=str(shared("data/mixed-folder")), workers=workers)
    batches = evaluation_batches(config, image_size=32, channels=3, batch_size=5)
    found = list(batches)
    keys = [key for batch in found for key in batch["keys"]]
    assert len(keys) == len(set(keys)) == 33 and keys == sorted(keys)
    assert set(batches.broken) == {"truncated.jpg", "empty.png", "text.jpg"}
    assert {key for batch in found for key in batch["broken"]} == set(batches.broken)
    assert all(batch["images"].shape[1:] == (3, 32, 32) for batch in found)
    assert next(iter(batches))["keys"] == found[0]["keys"]


def test_shards_partition_the_split(pictures: Path) -> None:
    config = DataConfig(path=str(pictures))
    options = {"image_size": 16, "channels": 3, "batch_size": 4}
    whole = [key for batch in evaluation_batches(config, **options) for key in batch["keys"]]
    parts = [
        [key for batch in evaluation_batches(config, **options, shard=(part, 5)) for key in batch["keys"]]
        for part in range(5)
    ]
    assert list(chain(*parts)) == whole and len(whole) == 22
    with pytest.raises(ValueError, match="shard"):
        evaluation_batches(config, **options, shard=(5, 5))


def test_evaluation_keeps_pixels_of_the_right_size() -> None:
    config = DataConfig(path=str(shared("data/tiny-imagenet-64/test.parquet")), limit=6)
    [batch] = evaluation_batches(config, image_size=64, channels=3, batch_size=8)
    expected = [images.read(item.image) for item in open_source(config).items(range(6))]
    assert torch.equal(batch["images"], torch.cat(expected)) and (batch["labels"] >= 0).all()


def test_native_size(pictures: Path) -> None:
    found = list(evaluation_batches(DataConfig(path=str(pictures)), image_size=None, channels=1, batch_size=1))
    assert len(found) == 22 and found[0]["images"].shape == (1, 1, 20, 24)
    with pytest.raises(ValueError, match="batch_size=1"):
        evaluation_batches(DataConfig(path=str(pictures)), image_size=None, channels=1, batch_size=2)


def test_five_channels(tmp_path: Path) -> None:
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.random.default_rng(number).random((20, 20, 5), dtype=np.float32))
    [batch] = _train(DataConfig(path=str(tmp_path), workers=0), 1, channels=5, batch_size=4)
    images.check(batch["images"], 5)
    [batch] = evaluation_batches(DataConfig(path=str(tmp_path)), image_size=8, channels=5, batch_size=4)
    assert batch["images"].shape == (4, 5, 8, 8)


def test_loader_processes_can_be_spawned(pictures: Path) -> None:
    for path in (str(pictures), "skimage"):
        config = DataConfig(path=path)
        data = TrainingSet(open_source(config), config, 16, 3, 0, False)
        copy = pickle.loads(pickle.dumps(data))
        assert torch.equal(copy[[(0, 1), (0, 2)]]["images"], data[[(0, 1), (0, 2)]]["images"])


@pytest.fixture
def stream(tmp_path: Path) -> DataConfig:
    """Four parquet files of ten images each, the picture's grey level its number; number 13 is broken."""
    for shard in range(4):
        rows = []
        for number in range(10 * shard, 10 * shard + 10):
            file = io.BytesIO()
            Image.new("L", (16, 16), number).save(file, "PNG")
            rows.append(b"no picture" if number == 13 else file.getvalue())
        table = datasets.Dataset.from_dict({"image": rows, "label": list(range(10 * shard, 10 * shard + 10))})
        table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "stream" / f"{shard}.parquet")
    return DataConfig(path=str(tmp_path / "stream"), streaming=True, crop="center", shuffle_buffer=7, workers=0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2])
def test_streams_resume_by_replaying(stream: DataConfig, workers: int, world: int) -> None:
    config = stream.replace(workers=workers)
    for rank in range(world):
        straight = _train(config, 16, accumulate=2, world=world, rank=rank)
        assert all(((b["images"][:, 0, 0, 0] + 1) * 127.5).round().long().equal(b["labels"]) for b in straight)
        assert _same(straight[6:], _train(config, 10, accumulate=2, world=world, rank=rank, start=3))


@pytest.mark.parametrize("world", [1, 2, 5])
def test_streams_are_shared_out(stream: DataConfig, world: int) -> None:
    """An epoch holds every image once over the processes, whether or not there is a file for each."""
    size = 40 // world
    seen = [_train(stream, 1, batch_size=40, world=world, rank=rank, image_size=16)[0] for rank in range(world)]
    labels = [label for batch in seen for label in batch["labels"].tolist()]
    assert all(len(batch["keys"]) == size for batch in seen)
    assert set(labels) == set(range(40)) - {13} and labels != sorted(labels)


def test_streams_are_evaluated_once(stream: DataConfig) -> None:
    batches = evaluation_batches(stream.replace(workers=1), image_size=16, channels=3, batch_size=16)
    labels = [label for batch in batches for label in batch["labels"].tolist()]
    assert labels == [number for number in range(40) if number != 13] and list(batches.broken) == ["00000013"]
    halves = [
        [
            n
            for b in evaluation_batches(stream, image_size=16, channels=3, batch_size=16, shard=(i, 2))
            for n in b["labels"].tolist()
        ]
        for i in range(2)
    ]
    assert sorted(chain(*halves)) == labels
    with pytest.raises(ValueError, match="streaming"):
        open_source(stream)


_OPEN = """
import os, signal, sys, time
from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.loading import training_batches

if __name__ == "__main__":
    config = DataConfig(path=sys.argv[1], workers=int(sys.argv[2]))
    batches = iter(training_batches(config, image_size=8, channels=3, batch_size=4))
    next(batches)
    if sys.argv[3] == "error":  # to the whole group, as a scheduler does: the run goes on, its loaders with it
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        os.killpg(0, signal.SIGTERM)
        time.sleep(0.3)
        for _ in range(20):
            next(batches)
    print("read", flush=True)
    if sys.argv[3] == "error":
        raise RuntimeError("nobody foresaw this")
"""


@pytest.mark.parametrize(("workers", "ending"), [(1, "end"), (2, "error")])
def test_a_script_with_an_open_loader_ends(tmp_path: Path, pictures: Path, workers: int, ending: str) -> None:
    (tmp_path / "script.py").write_text(_OPEN)
    command = [sys.executable, str(tmp_path / "script.py"), str(pictures), str(workers), ending]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, start_new_session=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout == "read\n" and done.returncode == (ending == "error"), done.stderr
    assert ("nobody foresaw this" in done.stderr) == (ending == "error")


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_closing_an_iterator_ends_its_loaders(pictures: Path, workers: int) -> None:
    batches = training_batches(DataConfig(path=str(pictures), workers=workers), image_size=8, channels=3, batch_size=4)
    stream = iter(batches)
    next(stream)
    assert len(multiprocessing.active_children()) == workers
    stream.close()
    assert not multiprocessing.active_children()


def test_bytes_are_carried_and_are_the_same_images(pictures: Path) -> None:
    config, options = DataConfig(path=str(pictures), workers=0), {"image_size": 8, "channels": 3, "batch_size": 4}
    raw, plain = (iter(training_batches(config, raw=raw, **options)) for raw in (True, False))
    for _ in range(3):
        one, other = next(raw), next(plain)
        assert one["images"].dtype == torch.uint8 and other["images"].dtype == torch.float32
        assert torch.equal(images.from_uint8(one["images"]), other["images"]) and one["keys"] == other["keys"]


def test_loaders_are_as_many_as_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert DataConfig(path="x").loaders == 8 and DataConfig(path="x", workers=3).loaders == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert DataConfig(path="x").loaders == 3
    assert DataConfig(path="x", streaming=True).loaders == 2  # its order depends on them
