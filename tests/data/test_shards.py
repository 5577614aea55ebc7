"""Shards of codes: complete, refused where they do not fit, whole after kill -9."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.loading import batches_by_part, evaluation_batches
from tokenizers_vq.data.shards import CodesInfo, files, read_codes, shard_name, stored, write_codes
from tokenizers_vq.data.shards.files import write_shard
from tokenizers_vq.data.shards.info import write_info
from tokenizers_vq.data.sources import open_source
from tokenizers_vq.data.transforms import cut_views, size_for_views


class Encoder(SimpleNamespace):
    """Codes that tell images apart, without a network."""

    def __init__(self, **fields) -> None:
        given = {
            "name": "toy",
            "image_size": 8,
            "channels": 3,
            "precision": "fp32",
            "fingerprint": "a" * 64,
            "layout": CodeLayout(((4, 2),), sizes=(1000,)),
            "pause": 0.0,
        }
        super().__init__(**{**given, **fields})

    def encode(self, images):
        time.sleep(self.pause)
        means = torch.nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), (4, 2)).flatten(1)
        return ((means + 1) * 499).long()


def data(path: Path, **fields) -> DataConfig:
    return DataConfig(path=str(path), workers=1, **fields)


def rows(folder: Path) -> dict[str, list[int]]:
    shards = read_codes(folder)
    assert len(set(shards.keys)) == len(shards.keys) == len(shards)
    return dict(zip(shards.keys, shards.codes.tolist(), strict=True))


def test_one_row_an_image_in_any_number_of_shards(pictures, tmp_path) -> None:
    encoder = Encoder()
    info = write_codes(encoder, data(pictures), tmp_path / "one", batch_size=5)
    assert info["images"] == 22
    assert set(info["broken"]) == {"a/05.png", "a/06.png"}
    write_codes(encoder, data(pictures), tmp_path / "five", batch_size=3, shards=5)
    assert rows(tmp_path / "one") == rows(tmp_path / "five")
    assert len(list((tmp_path / "five").glob("*.parquet"))) == 5
    shards = read_codes(tmp_path / "five", encoder.fingerprint)
    assert shards.layout == encoder.layout
    assert shards.label_names == ("a", "b")
    assert shards.labels.tolist() == [0] * 10 + [1] * 12
    assert shards.array.dtype == np.uint16
    assert shards[[3, 1]].equal(shards.codes[[3, 1]])
    assert shards[[3, 1]].dtype == torch.int64


def test_codes_above_16_bits_keep_their_value(pictures, tmp_path) -> None:
    class Large(Encoder):
        def encode(self, images):
            return super().encode(images) + 2**18

    write_codes(Large(layout=CodeLayout(((4, 2),), sizes=(2**19,))), data(pictures), tmp_path / "c")
    shards = read_codes(tmp_path / "c")
    assert shards.array.dtype == np.uint32
    assert int(shards.codes.min()) >= 2**18


def test_processes_share_the_shards(pictures, tmp_path) -> None:
    first = write_codes(Encoder(), data(pictures), tmp_path / "c", shards=3, rank=0, world=2)
    assert first["images"] is None  # shard 1 is the other's
    with pytest.raises(ValueError, match="not complete: 1 of 3 shards are missing"):
        read_codes(tmp_path / "c")
    assert write_codes(Encoder(), data(pictures), tmp_path / "c", rank=1, world=2)["images"] == 22
    write_codes(Encoder(), data(pictures), tmp_path / "whole")
    assert rows(tmp_path / "c") == rows(tmp_path / "whole")


def test_what_exists_is_done(pictures, tmp_path) -> None:
    write_codes(Encoder(), data(pictures), tmp_path / "c", shards=4)
    (tmp_path / "c" / shard_name(2, 4)).unlink()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "c").glob("*.parquet")}
    encoded = []
    info = write_codes(Encoder(), data(pictures), tmp_path / "c", progress=encoded.append)
    assert sum(encoded) == 6
    assert info["images"] == 22
    assert all((tmp_path / "c" / name).stat().st_mtime_ns == stamp for name, stamp in before.items())


@pytest.mark.parametrize(
    ("encoder", "config", "options", "message"),
    [
        ({"fingerprint": "b" * 64}, {}, {}, "another tokenizer .aaaaaaaaaaaa, this one is bbbbbbbbbbbb."),
        ({"image_size": 16}, {}, {}, "image_size = 8, now 16"),
        ({"precision": "bf16"}, {}, {}, "precision = fp32, now bf16"),
        ({}, {"limit": 3}, {}, "found = 24, now 3"),
        ({}, {"split": "a"}, {}, "= .*, now"),
        ({}, {}, {"shards": 7}, "shards = 2, now 7"),
    ],
)
def test_a_folder_of_other_codes_is_refused(pictures, tmp_path, encoder, config, options, message) -> None:
    write_codes(Encoder(), data(pictures), tmp_path / "c", shards=2)
    before = rows(tmp_path / "c")
    with pytest.raises(ValueError, match=message) as error:
        write_codes(Encoder(**encoder), data(pictures, **config), tmp_path / "c", **options)
    assert "\n" not in str(error.value)
    assert rows(tmp_path / "c") == before


def test_reading_refuses_what_does_not_fit(pictures, tmp_path) -> None:
    folder = tmp_path / "c"
    with pytest.raises(FileNotFoundError, match=r"no codes\.json"):
        read_codes(folder)
    write_codes(Encoder(), data(pictures), folder, shards=2)
    with pytest.raises(ValueError, match=r"another tokenizer: their fingerprint is aaaaaaaaaaaa, .* is bbbbbbbbbbbb"):
        read_codes(folder, "b" * 64)
    path = folder / shard_name(1, 2)
    whole, table = path.read_bytes(), pq.read_table(path)

    column = table.schema.get_field_index("fingerprint")
    mixed = pa.array(["a" * 64] * (len(table) - 1) + ["c" * 64])
    pq.write_table(table.set_column(column, "fingerprint", mixed), path)
    with pytest.raises(ValueError, match=r"00001-of-00002.* another tokenizer .cccccccccccc."):
        read_codes(folder)

    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"00001-of-00002.* cannot be read"):
        read_codes(folder)

    path.write_bytes(whole)
    info = json.loads((folder / "codes.json").read_text())
    info["layout"]["sizes"] = [3]
    (folder / "codes.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="beyond its layout's sizes"):
        read_codes(folder)


def test_one_process_at_a_time_writes_a_folder(pictures, tmp_path) -> None:
    out = tmp_path / "c"

    def encode() -> None:
        write_codes(Encoder(pause=0.1), data(pictures), out, batch_size=1)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=encode)
    process.start()
    while not (out / "codes.json").is_file():
        time.sleep(0.01)
    with pytest.raises(ValueError, match=f"{out} is being written by another process") as error:
        write_codes(Encoder(), data(pictures), out)
    assert "\n" not in str(error.value)
    os.kill(process.pid, signal.SIGKILL)  # what it holds is let go, what it left is taken away
    process.join()
    (out / f".{shard_name(0, 1)}.partial").write_bytes(b"half")
    (out / ".codes.json.partial").write_bytes(b"half")
    write_codes(Encoder(), data(pictures), out)
    assert sorted(path.name for path in out.iterdir()) == [shard_name(0, 1), "codes.json"]


def test_a_folder_that_cannot_be_written_is_named(pictures, tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"file.* cannot be written"):
        write_codes(Encoder(), data(pictures), tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        write_codes(Encoder(), data(tmp_path / "nothing"), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_captions_stand_beside_the_codes(pictures, tmp_path) -> None:
    folder = tmp_path / "c"
    write_codes(Encoder(), data(pictures), folder, shards=3)
    assert read_codes(folder).captions is None and not read_codes(folder).info["captions"]
    lines = [{"file_name": f"a/{n:02d}.png", "caption": f"picture {n}"} for n in range(12)]
    lines += [{"file_name": "a/07.png", "caption": "another text, of Zürich"}]
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match="captions = False, now True"):
        write_codes(Encoder(), data(pictures), folder)
    write_codes(Encoder(), data(pictures, caption_column="none"), tmp_path / "none")
    assert read_codes(tmp_path / "none").captions is None
    for views, count in (("center", 1), ("flip", 2)):
        write_codes(Encoder(), data(pictures), tmp_path / views, shards=3, views=views)
        shards = read_codes(tmp_path / views)
        wanted = {key: (f"picture {int(key[2:4])}",) if key[0] == "a" else () for key in shards.keys}
        wanted["a/07.png"] = ("picture 7", "another text, of Zürich")
        assert shards.captions == [wanted[key] for key in shards.keys] and len(shards) == 22 * count
        assert shards.captions_of(np.array([20, 3, 3])) == [shards.captions[row] for row in (20, 3, 3)]
        assert shards.renumbered(("b", "a"), "").captions == shards.captions
    column = pq.read_table(tmp_path / "center" / shard_name(2, 3))["captions"]
    assert column.type == pa.list_(pa.string())


def test_what_was_read_stands_in_codes_json(pictures, tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    for split in ("train", "test"):
        (tmp_path / "d" / split).mkdir(parents=True)
        for name in ("a", "b") if split == "train" else ("b",):
            shutil.copytree(pictures / name, tmp_path / "d" / split / name)
    numbers = {}
    for split, count in (("train", 24), ("test", 12)):
        info = write_codes(Encoder(), data(tmp_path / "d", split=split), tmp_path / split)
        assert (info["folder"], info["split"], info["found"]) == (str(tmp_path / "d" / split), split, count)
        assert info["label_names"] == ["a", "b"]  # one numbering, though the second split has one class
        assert any(str(tmp_path / "d" / split) in line and str(count) in line for line in caplog.messages)
        shards = read_codes(tmp_path / split)
        numbers[split] = {key.split("/")[-2]: int(label) for key, label in zip(shards.keys, shards.labels, strict=True)}
    assert numbers == {"train": {"a": 0, "b": 1}, "test": {"b": 1}}


def test_moved_data_are_the_same_and_changed_data_are_not(pictures, tmp_path) -> None:
    write_codes(Encoder(), data(pictures), tmp_path / "c", shards=2)
    before = rows(tmp_path / "c")
    (tmp_path / "c" / shard_name(0, 2)).unlink()
    moved = pictures.rename(tmp_path / "moved")
    write_codes(Encoder(), data(moved), tmp_path / "c")
    assert rows(tmp_path / "c") == before
    shutil.copy(moved / "a" / "00.png", moved / "b" / "20.png")
    with pytest.raises(ValueError, match=r"codes of other data \(b/20.png differs\): give another --out"):
        write_codes(Encoder(), data(moved), tmp_path / "c")
    assert rows(tmp_path / "c") == before


@pytest.mark.parametrize("workers", [0, 2])
def test_one_loader_serves_all_shards(workers: int, pictures) -> None:
    config = DataConfig(path=str(pictures), workers=workers)
    options = {"image_size": 8, "channels": 3, "batch_size": 3, "prefer": ("train",)}
    parts = batches_by_part(config, open_source(config), parts=[3, 0, 1, 30], of=32, **options)
    found = {part: (list(batches), batches.broken) for part, batches in parts}
    assert list(found) == [3, 0, 1, 30]
    parts = batches_by_part(config, open_source(config), parts=[0, 1, 2, 3], of=4, **options)
    for part, batches in parts:
        alone = evaluation_batches(config, shard=(part, 4), **options)
        for got, wanted in zip(batches, alone, strict=True):
            assert got["keys"] == wanted["keys"] and torch.equal(got["images"], wanted["images"])
        assert batches.broken == alone.broken and bool(alone.broken) == (part in (0, 1))


def folder_of(folder: Path, codes: np.ndarray, sizes: Sequence[int], **columns: Any) -> Path:
    """A folder of shards with `sizes` rows of `codes`, as older versions left it: without their numbers."""
    folder.mkdir()
    layout = CodeLayout(((codes.shape[1],),), sizes=(16384,))
    info = CodesInfo(fingerprint="a" * 64, layout=layout.to_dict(), precision="fp32", shards=len(sizes))
    write_info(folder, info)
    ends = np.cumsum(sizes)
    for part, (first, last) in enumerate(zip(ends - sizes, ends, strict=True)):
        table = {
            "codes": pa.FixedSizeListArray.from_arrays(pa.array(codes[first:last].reshape(-1)), codes.shape[1]),
            "fingerprint": pa.array(["a" * 64] * (last - first), pa.string()),
            "key": pa.array([str(row) for row in range(first, last)], pa.string()),
            "label": pa.array(np.arange(first, last) % 7, pa.int64()),
            **{name: column[first:last] for name, column in columns.items()},
        }
        write_shard(folder / shard_name(part, len(sizes)), pa.table(table), info.how(), {})
    return folder


@pytest.mark.parametrize("unit", [2**18, 16])
def test_rows_are_found_by_shard_and_place(unit: int, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(stored, "UNIT", unit)
    monkeypatch.setattr(files, "_GROUP", 24)
    monkeypatch.setattr(stored, "KEPT", 2 * unit)
    whole = np.arange(40, dtype=np.uint16).reshape(10, 4)
    texts = pa.array([["a"], None, [], ["b", "c"], *[["d"]] * 6], pa.list_(pa.string()))
    shards = read_codes(folder_of(tmp_path / "c", whole, [3, 0, 6, 1], captions=texts))
    array = shards.array
    assert len(array) == 10 and array.shape == (10, 4) and array.dtype == np.uint16
    for rows in ([], [9, 0, 3, 3, 7], list(range(10))[::-1]):
        assert shards.keys_of(np.array(rows, int)) == [str(row) for row in rows]
        assert shards.labels_of(np.array(rows, int)).tolist() == [row % 7 for row in rows]
        assert shards.captions_of(np.array(rows, int)) == [tuple(texts[row].as_py() or ()) for row in rows]
    mask = np.arange(10) % 3 == 0
    indices: list = [
        0,
        9,
        -1,
        -10,
        slice(None),
        slice(2, 5),
        slice(8, 1, -3),
        slice(20, 30),
        [],
        [9, 0, 3, 3, -2],
        mask,
    ]
    for index in [*indices, np.array([2, 3], np.uint8), np.int64(4), np.array([[1, 2], [9, 0]]), range(2, 9, 2)]:
        assert np.array_equal(array[index], whole[index]), index
        assert array[index].dtype == np.uint16
    for beyond in (10, -11, [0, 10], np.zeros(9, bool), 0.5, "a"):
        with pytest.raises(IndexError):
            array[beyond]


def test_datasets_reads_the_shards(pictures, tmp_path) -> None:
    import datasets

    write_codes(Encoder(), data(pictures), tmp_path / "c", shards=2)
    loaded = datasets.load_dataset("parquet", data_files=str(tmp_path / "c" / "*.parquet"), split="train")
    assert len(loaded) == 22
    assert loaded[0]["codes"] == read_codes(tmp_path / "c")[0].tolist()
    assert set(loaded.column_names) == {"codes", "fingerprint", "key", "label"}


def test_killed_at_random_moments_nothing_is_lost_or_doubled(pictures, tmp_path) -> None:
    draw, out = random.Random(0), tmp_path / "c"
    encoder = Encoder(pause=0.03)

    def encode() -> None:
        write_codes(encoder, data(pictures), out, batch_size=1, shards=8)
        os._exit(0)

    kills = 0
    for _ in range(40):
        process = multiprocessing.get_context("fork").Process(target=encode)
        process.start()
        process.join(draw.uniform(0.02, 0.25) if kills < 8 else None)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
        elif process.exitcode == 0:
            break
    assert process.exitcode == 0
    assert kills >= 1
    write_codes(Encoder(), data(pictures), tmp_path / "whole")
    assert rows(out) == rows(tmp_path / "whole")
    assert read_codes(out).info["images"] == 22


@pytest.mark.parametrize(("views", "count"), [("flip", 2), ("ten-crop", 10)])
def test_several_views_an_image(views: str, count: int, pictures, tmp_path) -> None:
    seen = []

    class Looks(Encoder):
        def encode(self, images):
            seen.append(images)
            return super().encode(images)

    info = write_codes(Looks(image_size=20), data(pictures), tmp_path / "many", batch_size=5, shards=2, views=views)
    assert info["images"] == 22 and info["views"] == views
    shards = read_codes(tmp_path / "many")
    assert len(shards) == 22 * count
    assert [shards.keys[row : row + count] for row in range(0, len(shards), count)] == [
        [key] * count for key in shards.keys[::count]
    ]
    views_of = torch.cat(seen).unflatten(0, (22, count))
    assert views_of.shape[3:] == (20, 20)
    assert torch.equal(views_of[:, count // 2 :], views_of[:, : count // 2].flip(-1))
    columns = pq.read_table(tmp_path / "many" / shard_name(0, 2))
    assert columns["view"].to_pylist()[: 2 * count] == 2 * list(range(count))
    plain = write_codes(Encoder(image_size=20), data(pictures), tmp_path / "one", shards=2)
    assert plain["views"] == "center" and "view" not in pq.read_table(tmp_path / "one" / shard_name(0, 2)).column_names
    if views == "flip":
        assert torch.equal(shards.codes[::2], read_codes(tmp_path / "one").codes)
    with pytest.raises(ValueError, match=f"holds codes made with views = {views}, now center"):
        write_codes(Encoder(image_size=20), data(pictures), tmp_path / "many")


def test_unknown_views_are_refused(pictures, tmp_path) -> None:
    with pytest.raises(ValueError, match="no views 'flips'; did you mean 'flip'"):
        write_codes(Encoder(), data(pictures), tmp_path, views="flips")


def test_ten_crop_takes_corners_and_centre() -> None:
    image = torch.arange(22 * 22.0).view(1, 1, 22, 22)
    assert size_for_views(20, "ten-crop") == (22, 22)
    views = cut_views(image, 20, "ten-crop")
    for view, (top, left) in zip(views, [(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)], strict=False):
        assert torch.equal(view, image[0, :, top : top + 20, left : left + 20])


@pytest.mark.parametrize("shards", [1, 2])
def test_images_of_which_none_can_be_read_are_no_success(tmp_path, shards: int) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / "d" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "d" / name).write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"could be read; the first, a.png|no image can be read; the first, a.png"):
        write_codes(Encoder(), data(tmp_path / "d"), tmp_path / "codes", shards=shards)
