"""A run's data are known by names, sizes and samples: a moved folder is the same, a changed file is named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.data.conftest import png, tar
from tokenizers_vq.data import identity
from tokenizers_vq.data.sources import DataConfig, open_source


def _record(path: Path) -> tuple[dict, list[tuple[str, str]]]:
    source = open_source(DataConfig(path=str(path)))
    return identity.record(source.files(), source.label_names), source.files()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("train/cat/1.png", "train/cat/2.png", "train/dog/3.png", "test/dog/4.png"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(png(int(name[-5])))
    return tmp_path / "set"


def test_the_same_data_elsewhere(folder: Path, tmp_path: Path) -> None:
    before, _ = _record(folder)
    shutil.copytree(folder, tmp_path / "moved")
    os.utime(tmp_path / "moved/train/cat/1.png", (0, 0))
    for path in (tmp_path / "moved", folder / "train", folder / "../set"):
        now, files = _record(path)
        assert now == before and identity.changed(before, now, files) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: (root / "cat/2.png").write_bytes(png(2)[:-1] + b"x"), "cat/2.png differs"),  # of the same size
        (lambda root: (root / "dog/3.png").write_bytes(b"longer" * 99), "dog/3.png differs"),
        (lambda root: (root / "cat/2.png").rename(root / "cat/0.png"), "cat/0.png and 1 more differ"),
        (lambda root: (root / "cat/1.png").unlink(), "2 files instead of 3, first at cat/2.png"),
        (lambda root: (root / "cat/4.png").write_bytes(png(4)), "4 files instead of 3, first at cat/4.png"),
        (lambda root: (root / "../test/bird").mkdir() or (root / "../test/bird/5.png").write_bytes(png(5)),
         "the classes are others"),
    ],
)  # fmt: skip
def test_what_changed_is_named(folder: Path, change, words: str) -> None:
    before, _ = _record(folder)
    change(folder / "train")
    now, files = _record(folder)
    assert identity.changed(before, now, files) == words


def test_tables_are_known_by_their_files(tmp_path: Path) -> None:
    for shard in range(3):
        tar(tmp_path / f"d/{shard}.tar", {f"{shard}{i}.png": png(i) for i in range(3)})
    before, _ = _record(tmp_path / "d")
    shutil.copytree(tmp_path / "d", tmp_path / "e")
    assert _record(tmp_path / "e")[0] == before
    tar(tmp_path / "e/1.tar", {f"1{i}.png": png(i + 1) for i in range(3)})
    now, files = _record(tmp_path / "e")
    assert identity.changed(before, now, files) == "1.tar differs"


def test_many_files_share_blocks(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number:04d}" for number in range(1500)]
    for path in paths:
        path.write_bytes(b"x")
    files = [(path.name, str(path)) for path in paths]
    before = identity.record(files, None)
    assert len(before["blocks"]) == 1000
    paths[1100].write_bytes(b"xy")
    words = identity.changed(before, identity.record(files, None), files)
    assert words == "one of the 2 files from 1099 on differs"
