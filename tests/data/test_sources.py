"""Every kind of data opens by its path alone; what cannot be opened says in one line what to do."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.conftest import shared
from tokenizers_vq import images
from tokenizers_vq.config import ConfigError
from tokenizers_vq.data import photos
from tokenizers_vq.data.sources import DataConfig, Source, open_source


def _open(path: object, **fields: object) -> Source:
    return open_source(DataConfig(path=str(path), **fields))


def _png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def _value(source: Source, index: int) -> int:
    return int(images.decode(source.items([index])[0].image)[0, 0, 0])


def test_class_folders(pictures: Path) -> None:
    source = _open(pictures)
    items = source.items(range(len(source)))
    assert source.label_names == ("a", "b")
    assert [item.label for item in items] == [0] * 12 + [1] * 12
    assert items[0].key == "a/00.png" and items[23].key == "b/23.png"
    assert images.decode(items[0].image).shape == (3, 20, 24)


def test_mixed_folder() -> None:
    source = _open(shared("data/mixed-folder"))
    keys = [item.key for item in source.items(range(len(source)))]
    assert len(keys) == len(set(keys)) == 36 and source.label_names is None
    assert {"UPPER.JPG", "päpers & ünïcode/画像.jpg", "nested/deeper/three.png"} <= set(keys)
    assert keys == sorted(keys)


def test_split_folders(tmp_path: Path, pictures: Path) -> None:
    for split in ("train", "test"):
        shutil.copytree(pictures if split == "train" else pictures / "a", tmp_path / "set" / split)
    train, test = _open(tmp_path / "set"), _open(tmp_path / "set", split="test")
    assert (len(train), train.label_names) == (24, ("a", "b"))
    assert (len(test), test.label_names, test.items([0])[0].key) == (12, None, "test/00.png")
    assert len(open_source(DataConfig(path=str(tmp_path / "set")), prefer=("test", "train"))) == 12
    with pytest.raises(ValueError, match=r"no sub-folder for split 'dev' \(sub-folders: test, train\)"):
        _open(tmp_path / "set", split="dev")


def test_one_file_and_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "bands.npy", np.zeros((4, 4, 5), np.uint16))
    for path in (tmp_path, tmp_path / "bands.npy"):
        [item] = _open(path).items([0])
        assert item.key == "bands.npy" and images.decode(item.image, 5).shape == (5, 4, 4)


def test_tiny_imagenet_parquet() -> None:
    root = shared("data/tiny-imagenet-64")
    folder, file = _open(root, split="test"), _open(root / "test.parquet")
    assert len(folder) == len(file) == 3997 and len(_open(root)) == 12000
    assert len(folder.label_names or ()) == 80
    assert folder.items([5]) == file.items([5]) and 0 <= folder.items([5])[0].label < 80
    assert len({item.key for item in file.items(range(3997))}) == 3997
    with pytest.raises(ValueError, match="no split 'val'; it has: train, test"):
        _open(root, split="val")


def test_parquet_columns(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict(
        {"photo": [_png(value) for value in range(6)], "animal": ["dog", "cat"] * 3, "n": list(range(6))}
    )
    table.to_parquet(tmp_path / "a.parquet")
    path = tmp_path / "a.parquet"
    with pytest.raises(ValueError, match="no column holds images; set image_column to one of: photo, animal, n"):
        _open(path)
    with pytest.raises(ValueError, match="no column 'phto'; did you mean 'photo'"):
        _open(path, image_column="phto")
    with pytest.raises(ValueError, match=r"column 'n' holds .* set image_column"):
        _open(path, image_column="n")
    source = _open(path, image_column="photo", label_column="animal")
    assert source.label_names == ("cat", "dog")
    assert [item.label for item in source.items(range(6))] == [1, 0] * 3
    assert [item.key for item in source.items([0, 5])] == ["00000000", "00000005"]
    assert [_value(source, index) for index in range(6)] == list(range(6))


def test_webdataset(tmp_path: Path) -> None:
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for number in range(5):
                for suffix, data in (("png", _png(10 * shard + number)), ("cls", str(number).encode())):
                    info = tarfile.TarInfo(f"{shard}-{number}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    for path in (tmp_path, tmp_path / "*.tar"):
        source = _open(path)
        items = source.items(range(len(source)))
        assert [item.key for item in items] == [f"{shard}-{number}" for shard in range(2) for number in range(5)]
        assert [item.label for item in items] == list(range(5)) * 2
        assert _value(source, 7) == 12


def test_saved_dataset(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"image": [_png(value) for value in range(3)]}).cast_column(
        "image", datasets.Image()
    )
    table.save_to_disk(tmp_path / "saved")
    assert _value(_open(tmp_path / "saved"), 2) == 2


def test_photographs_are_real_and_splits_apart() -> None:
    train, test = _open("skimage"), _open("skimage", split="test")
    assert "scikit-image" in train.description and "photographs" in train.description
    assert len(train) > 2000 and len(test) > 200 and train.label_names == test.label_names
    covered: dict[str, np.ndarray] = {}
    for source, bit in ((train, 1), (test, 2)):
        for number, top, left in source.windows:  # type: ignore[attr-defined]
            path = source.paths[number]  # type: ignore[attr-defined]
            seen = covered.setdefault(path.name, np.zeros(photos.photograph(path).shape[:2], np.uint8))
            seen[top : top + photos.WINDOW, left : left + photos.WINDOW] |= bit
    assert len(covered) >= 8 and all(seen.max() < 3 for seen in covered.values())
    assert len({item.key for item in train.items(range(len(train)))}) == len(train)
    assert images.decode(train.items([0])[0].image).shape == (3, photos.WINDOW, photos.WINDOW)


def test_limit_is_spread_over_the_classes(pictures: Path) -> None:
    source = _open(pictures, limit=4)
    assert [item.key for item in source.items(range(len(source)))] == ["a/00.png", "a/06.png", "b/12.png", "b/18.png"]
    assert len(_open(pictures, limit=100)) == 24


@pytest.mark.parametrize(
    "path", ["no/such/folder", "/no/such", "./none", "none/*.parquet", "none.tar", "cat.jpg", "nowhere/"]
)
def test_a_missing_path_is_one_line(path: str) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"no data at .*; give an existing folder, file or glob, owner/name of the Hub, or skimage",
    ) as e:
        _open(path)
    assert "\n" not in str(e.value) and path in str(e.value)


def test_other_refusals(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no images, parquet or tar files in folder"):
        (tmp_path / "empty").mkdir()
        _open(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no folder or file nobody/nothing, and the Hub did not give it"):
        _open("nobody/nothing")
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="cannot be read as parquet") as error:
        _open(tmp_path / "bad.parquet")
    assert "\n" not in str(error.value)
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=r"neither an image, a .parquet nor a .tar file"):
        _open(tmp_path / "a.zip")
    with pytest.raises(ConfigError, match="scale: needs two rising shares"):
        DataConfig(path="x", scale=(0.9, 0.5))
    with pytest.raises(ConfigError, match="did you mean 'workers'"):
        DataConfig(path="x", worker=1)
