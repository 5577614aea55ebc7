"""What is read is what the person meant: which files of a folder count, and what is passed over has a name."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.conftest import png, tar
from tokenizers_vq import images
from tokenizers_vq.data.loading import evaluation_batches
from tokenizers_vq.data.sources import DataConfig, Source, open_source, open_stream


def _open(path: object, **fields: object) -> Source:
    return open_source(DataConfig(path=str(path), **fields))


def _keys(source: Source) -> list[str]:
    return [item.key for item in source.items(range(len(source)))]


def _put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(1) if Path(name).suffix in (".png", ".jpg") else b"x")
    return root


def _parquet(path: Path, count: int, column: str = "image") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": png(value), "path": f"{count}-{value}.png"} for value in range(count)]
    table = datasets.Dataset.from_dict({column: rows}, features=datasets.Features({column: datasets.Image()}))
    with path.open("wb") as file:
        table.to_parquet(file)
    return path


def test_files_beside_tables_are_no_data(tmp_path: Path) -> None:
    _parquet(tmp_path / "a/part-0.parquet", 3)
    _put(tmp_path / "a", "LICENSE", "_SUCCESS", "README.md", "stats.json", "index.csv", "dataset_info.json")
    pq.write_table(pa.table({"column": ["image"], "mean": [0.5]}), tmp_path / "a/statistics.parquet")
    source = _open(tmp_path / "a")
    assert len(source) == 3 and "2 without ending" in source.description and "1 .parquet" in source.description
    tar(tmp_path / "b/00000.tar", {f"{i:05d}.png": png(i) for i in range(3)})
    pq.write_table(pa.table({"url": ["u"] * 3, "caption": ["c"] * 3}), tmp_path / "b/00000.parquet")
    _put(tmp_path / "b", "00000_stats.json", "nshards.txt", "_SUCCESS")
    assert _keys(_open(tmp_path / "b")) == ["00000", "00001", "00002"]
    _put(tmp_path / "c", "00000/000000000.jpg", "00000/000000000.json", "00000/000000000.txt")
    pq.write_table(pa.table({"url": ["u"], "caption": ["c"]}), tmp_path / "c/00000.parquet")
    assert _keys(_open(tmp_path / "c")) == ["00000/000000000.jpg"]
    _put(tmp_path / "c", "00000_stats.json", "00001_stats.json", "00001/000010000.jpg")
    shards = _open(tmp_path / "c")
    assert shards.label_names is None and "no classes, for the folders are img2dataset's shards" in shards.description
    _put(tmp_path / "c", "3/1.jpg")
    assert _open(tmp_path / "c").label_names == ("00000", "00001", "3")


def test_pictures_beside_tables(tmp_path: Path) -> None:
    """Few pictures are figures of a data set's page; as many as the rows could be the data."""
    _parquet(tmp_path / "data/train-00000-of-00001.parquet", 30)
    _put(tmp_path, "README.md", "assets/banner.png")
    source = _open(tmp_path)
    assert len(source) == 30 and "1 .png" in source.description and "split train" in source.description
    _put(tmp_path, *(f"more/{number}.png" for number in range(3)))
    with pytest.raises(ValueError, match=r"holds 4 images \(assets/banner.png\) and 1 parquet files with images"):
        _open(tmp_path)
    tar(tmp_path / "t/0.tar", {f"{i}.png": png(i) for i in range(12)})
    _put(tmp_path, "t/thumbnail.png")
    assert len(_open(tmp_path / "t")) == 12
    _parquet(tmp_path / "t/0.parquet", 3)
    with pytest.raises(ValueError, match=r"1 parquet files with images .* and 1 tar files"):
        _open(tmp_path / "t")


def test_a_split_word_in_one_name_silences_no_neighbour(tmp_path: Path) -> None:
    for name in ("street", "forest", "train", "harbour"):
        _parquet(tmp_path / f"places/{name}.parquet", 2)
    assert len(_open(tmp_path / "places")) == 8
    for name in ("shard-0", "shard-1", "shard-test"):
        tar(tmp_path / f"tars/{name}.tar", {f"{name}_{i}.png": png(i) for i in range(2)})
    assert len(_open(tmp_path / "tars")) == len(_open(tmp_path / "tars/*.tar")) == 6
    stream = open_stream(DataConfig(path=str(tmp_path / "tars"), streaming=True))
    assert len(list(stream.dataset)) == 6 and stream.about.split == "train"


@pytest.mark.parametrize("other", ["Test", "TESTING", "valid", "dev", "Val2017"])
def test_training_and_evaluation_folders_in_any_form(tmp_path: Path, other: str) -> None:
    _put(tmp_path, "Training/1.png", "Training/2.png", f"{other}/3.png")
    assert _keys(_open(tmp_path)) == ["Training/1.png", "Training/2.png"]
    evaluated = evaluation_batches(DataConfig(path=str(tmp_path)), image_size=4, channels=3, batch_size=1)
    assert [key for batch in evaluated for key in batch["keys"]] == [f"{other}/3.png"]
    assert evaluated.about == (f"1 images in {tmp_path / other}, split {other}", str(tmp_path / other), other)


NAMES = ("a[1]b", "st*r", "q?m", "h#sh", "sp ace", "pc%20t", "2012", "__x__", "br{a,b}", "zip:x", "é画", "new\nline",
         os.fsdecode(b"caf\xe9"))  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_paths_are_taken_literally(tmp_path: Path, name: str) -> None:
    _put(tmp_path / name / "pictures", f"{name}.png")
    [item] = _open(tmp_path / name / "pictures").items([0])
    assert images.decode(item.image).shape == (3, 4, 4)
    item.key.encode()
    assert item.key.isprintable()
    _parquet(tmp_path / name / f"{name}.parquet", 2)
    assert len(_open(tmp_path / name / f"{name}.parquet")) == 2
    tar(tmp_path / name / "tars" / f"{name}.tar", {"1.png": png(1)})
    source = _open(tmp_path / name / "tars")
    assert len(source) == 1 and source.description.isprintable()


def test_a_path_wins_over_a_glob(tmp_path: Path) -> None:
    _put(tmp_path, "[ab]/1.png", "a/2.png", "a/3.png", "b/4.txt")
    assert _keys(_open(tmp_path / "[ab]")) == ["1.png"]
    assert _keys(_open(tmp_path / "?" / "*.png")) == ["2.png", "3.png"]
    with pytest.raises(ValueError, match="matches folders only"):
        _open(tmp_path / "?")
    _put(tmp_path, "x::y/1.png")
    assert len(_open(tmp_path / "x::y")) == 1
    _parquet(tmp_path / "x::y/1.parquet", 1)
    with pytest.raises(ValueError, match="a path with '::' cannot be read; rename it"):
        _open(tmp_path / "x::y/1.parquet")


def test_links_in_circles(tmp_path: Path) -> None:
    root = _put(tmp_path / "root", "a/1.png", "b/2.png")
    _put(tmp_path, "far/3.png", "far/deep/4.png")
    for link, target in (("a/up", "root"), ("a/b", "root/b"), ("b/a", "root/a"), ("top", "."), ("out", "far")):
        (root / link).symlink_to(tmp_path / target)
    (tmp_path / "far/back").symlink_to(root / "a")
    (tmp_path / "far/deep/far").symlink_to(tmp_path / "far")
    assert _keys(_open(root)) == ["a/1.png", "b/2.png", "out/3.png", "out/deep/4.png"]
    _put(tmp_path, "store/x/5.png")
    for split in ("train", "test"):
        (tmp_path / "splits" / split).parent.mkdir(exist_ok=True)
        (tmp_path / "splits" / split).symlink_to(tmp_path / "store")
    assert _keys(_open(tmp_path / "splits")) == ["train/x/5.png"]
    assert _keys(_open(tmp_path / "splits", split="test")) == ["test/x/5.png"]


def test_what_this_package_wrote_is_no_data(tmp_path: Path) -> None:
    root = _put(tmp_path, "1.png", "2.png", "run/recipe.yaml", "run/log.jsonl", "run/images/0000500.png")
    _put(root, "run/samples/0.png", "drawn/samples.json", "drawn/grid.png", "drawn/00000.png")
    _put(root, "codes/codes.json", "page/report.json", "page/report.html", "page/a.png")
    pq.write_table(pa.table({"codes": [[1]]}), root / "codes/codes-00000-of-00001.parquet")
    source = _open(root)
    assert _keys(source) == ["1.png", "2.png"] and "what this package wrote in" in source.description
    for name in ("run", "codes", "run/images", "run/samples"):
        with pytest.raises(ValueError, match="was written by this package"):
            _open(root / name)


def test_a_run_in_its_own_data_goes_on_with_the_same(tmp_path: Path) -> None:
    """Killed before its first line of the log, it has pictures already."""
    _put(tmp_path, "1.png", "run/recipe.yaml", "run/data.json", "run/images/0000001.png")
    assert _keys(_open(tmp_path)) == ["1.png"]


def test_variants_of_one_data_set_are_not_mixed(tmp_path: Path) -> None:
    for name in ("64/train-0", "64/test-0", "256/train-0", "256/test-0"):
        _parquet(tmp_path / f"{name}.parquet", 2)
    with pytest.raises(ValueError, match="the same files lie in 256, 64, as if each were a data set of its own"):
        _open(tmp_path)
    assert len(_open(tmp_path / "64")) == 2 and len(_open(tmp_path, split="all")) == 8
    for name in ("y=1/part-0", "y=2/part-0"):
        _parquet(tmp_path / f"parts/{name}.parquet", 2)
    assert len(_open(tmp_path / "parts")) == 4


def test_files_of_unreadable_kinds_are_counted_and_named_once(tmp_path: Path) -> None:
    _put(tmp_path, "1.png", "a.HEIC", "b.heic", "c.jxl", "d", ".hidden", ".DS_Store", "__MACOSX/._1.png")
    assert "left out: 2 .heic, 1 .jxl, 1 without ending (a.HEIC ...)" in _open(tmp_path).description
    assert _keys(_open(tmp_path)) == ["1.png"]
    (tmp_path / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"no images, parquet or tar files in folder .* \(left out: 2 .heic"):
        _open(tmp_path)
    (tmp_path / "pipe.png").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    batches = evaluation_batches(DataConfig(path=str(tmp_path)), image_size=4, channels=3, batch_size=4)
    with pytest.raises(ValueError, match=r"no image can be read; the first, gone.png"):
        list(batches)
    assert set(batches.broken) == {"gone.png", "pipe.png"}


def test_a_few_arrays_beside_pictures_are_statistics(tmp_path: Path) -> None:
    _put(tmp_path, *(f"{number}.png" for number in range(10)))
    for name in ("labels.npy", "features.npy"):
        np.save(tmp_path / name, np.zeros((10, 4), np.float32))
        assert len(_open(tmp_path)) == (10 if name == "labels.npy" else 12)


def test_images_beside_masks_are_no_classes(tmp_path: Path) -> None:
    _put(tmp_path, "train/images/1.png", "train/masks/1.png", "val/images/2.png", "val/masks/2.png")
    with pytest.raises(ValueError, match="the folder images lies beside masks in train: are they classes, or masks"):
        _open(tmp_path)
    assert _keys(_open(tmp_path / "train/images")) == ["1.png"]
    assert len(_open(tmp_path, split="all")) == 4


def test_classes_have_one_number_in_all_splits(tmp_path: Path) -> None:
    _put(tmp_path, *(f"train/{name}/1.png" for name in ("ant", "bee", "cat", "dog")))
    _put(tmp_path, *(f"test/{name}/1.png" for name in ("ant", "cat", "dog")))
    train, test = _open(tmp_path), _open(tmp_path, split="test")
    assert train.label_names == test.label_names == ("ant", "bee", "cat", "dog")
    assert {item.key.split("/")[1]: item.label for item in test.items(range(3))} == {"ant": 0, "cat": 2, "dog": 3}
    _put(tmp_path, "val/images/1.png", "val/images/2.png")  # a folder of all pictures is no class
    assert _open(tmp_path, split="val").label_names is None
    assert _open(tmp_path, split="test").label_names == ("ant", "bee", "cat", "dog")
    assert _open(tmp_path, split="test", label_column="none").label_names is None


def test_a_mistyped_path_is_answered_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(_put(tmp_path, "photos/1.png"))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: pytest.fail("the Hub was asked"))
    for name in ("photo", "photos/trian", "Photos/", "mnist"):  # the Hub's names have an owner
        with pytest.raises(FileNotFoundError, match="no data at"):
            _open(name)
    with pytest.raises(FileNotFoundError, match=r"no data at phtos; .* did you mean 'photos'\?"):
        _open("phtos")
    assert len(open_source(DataConfig(path=tmp_path / "photos"))) == 1
    asked: list[str] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **options: asked.append(name) or {})
    with pytest.raises(ValueError, match="none of the splits"):
        _open("owner/photos")  # this may be the Hub's
    assert asked == ["owner/photos"]
