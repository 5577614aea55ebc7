"""Samples of tars: names with dots of their own, mixed formats, companions; what is unclear or too large is named."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from pathlib import Path

import pytest

from tests.data.conftest import png, tar
from tokenizers_vq import images
from tokenizers_vq.data.columns import Unreadable
from tokenizers_vq.data.loading import evaluation_batches, training_batches
from tokenizers_vq.data.sources import DataConfig, Item, open_source


def _items(path: Path, **fields: object) -> list[Item]:
    source = open_source(DataConfig(path=str(path), **fields))
    return source.items(range(len(source)))


def _values(items: list[Item]) -> dict[str, int]:
    return {item.key: int(images.decode(item.image)[0, 0, 0]) for item in items}


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        ("a.png b.png", "a b"),
        ("a.PNG b.jpg c.webp d.JPEG", "a b c d"),  # formats mixed
        ("./a.png ./._a.png b.png __MACOSX/b.png", "a b"),
        ("IMG.2019.05.png IMG.2019.06.png", "IMG.2019.05 IMG.2019.06"),  # dots of their own
        ("2019-01.12.30.png 2019-01.12.31.png 2019-02.01.01.png", "2019-01.12.30 2019-01.12.31 2019-02.01.01"),
        ("x/a.png y/a.png", "x/a y/a"),
        ("0.mask.png 0.png 1.png 1.mask.png", "0 1"),  # companions
        ("0.left.png 1.left.png", "0 1"),
        ("v1.0.png", "v1"),
        ("caf\udce9.png", r"caf\xe9"),
    ],
)
def test_names_of_members(tmp_path: Path, names: str, keys: str) -> None:
    path = tar(tmp_path / "a.tar", {name: png(i) for i, name in enumerate(names.split())})
    items = _items(path)
    assert [item.key for item in items] == keys.split()
    plain = [i for i, name in enumerate(names.split()) if "._" not in name and "MAC" not in name and "mask" not in name]
    assert list(_values(items).values()) == plain


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("0.jpg 0.png 1.jpg 1.png", "several pictures belong to 0: jpg, png; set image_column"),
        ("0.left.png 0.right.png 1.left.png 1.right.png", "several pictures belong to 0: left.png, right.png"),
        ("a.png a.b.png c.png d.png", r"pictures ending in .b.png lie beside 1 of 3 others"),
        ("train/0.png test/1.png", "holds the folders test, train: unpack it"),
        ("d/Train/cat/0.png d/Valid/cat/1.png", "holds the folders Train, Valid: unpack it"),
    ],
)
def test_members_that_could_mean_two_things_are_refused(tmp_path: Path, names: str, words: str) -> None:
    path = tar(tmp_path / "a.tar", {name: png(i) for i, name in enumerate(names.split())})
    with pytest.raises(ValueError, match=words):
        _items(path)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("a.png b.png a.txt b.txt", "", "a.txt lies apart from the other files of its name"),
        ("a.png b.png a.cls b.cls", "", "a.cls lies apart from the other files of its name"),
        ("a.png", "b.png b.cls", "b.cls: the first images have no .cls"),
        ("a.png", "b.png b.txt", "b.txt: the first images have no .txt"),
        ("a.tar b.tar", "", "holds archives: unpack it"),
    ],
)
def test_what_would_be_lost_is_refused(tmp_path: Path, first: str, second: str, words: str) -> None:
    for name, names in (("0.tar", first), ("1.tar", second)):
        if names:
            tar(tmp_path / name, {name: b"1" if name.endswith(("txt", "cls")) else png(1) for name in names.split()})
    with pytest.raises(ValueError, match=words):
        _items(tmp_path)
    if second:
        assert len(_items(tmp_path, label_column="none", caption_column="none")) == 2


def test_an_ending_that_is_asked_for(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "a.tar", {f"{i}.{e}": png(10 * i + j) for i in range(2) for j, e in enumerate(("jpg", "b.png"))}
    )
    assert _values(_items(path, image_column="b.png")) == {"0": 1, "1": 11}
    assert _values(_items(path)) == {"0": 0, "1": 10}
    with pytest.raises(ValueError, match=r"no column 'gif'; choose from: b.png, jpg"):
        _items(path, image_column="gif")


def test_labels_and_captions(tmp_path: Path) -> None:
    members = {
        "0.png": png(0),
        "0.cls": b"3\n",
        "0.txt": "a cät\n".encode(),
        "1.cls": b"0",
        "1.jpg": png(1),
        "1.json": b"{}",
    }
    path = tar(tmp_path / "a.tar", {**members, "README.md": b"x"})
    assert [(item.key, item.label, item.captions) for item in _items(path)] == [("0", 3, ("a cät",)), ("1", 0, ())]
    assert [(item.label, item.captions) for item in _items(path, label_column="none", caption_column="none")] == [
        (-1, ()), (-1, ())
    ]  # fmt: skip
    [batch] = evaluation_batches(DataConfig(path=str(path), streaming=True), image_size=4, channels=3, batch_size=4)
    assert (batch["labels"].tolist(), batch["captions"]) == ([3, 0], [("a cät",), ()])
    text = tar(tmp_path / "b.tar", {"0.png": png(0), "0.cls": b"dog", "1.png": png(1), "1.cls": b"cat"})
    assert [item.label for item in _items(text)] == [1, 0]
    for members, words in (
        (
            {"0.png": png(0), "0.cls": b"1", "1.png": png(0), "1.cls": b"one"},
            r"c.tar: 1.cls holds 'one'; a label is one",
        ),
        ({"0.png": png(0), "0.cls": b"1", "1.png": png(0)}, r"c.tar: 1 \(row 1\) of column 'label' holds null"),
    ):
        with pytest.raises(ValueError, match=words):
            _items(tar(tmp_path / "c.tar", members))


def test_what_is_no_picture_or_too_large_is_broken_and_named(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", {"0.png": png(5), "1.heic": b"x", "2.txt": b"alone", "3.png": png(6)})
    with gzip.open(tmp_path / "b.tar.gz", "wb", 1) as packed, tarfile.open(fileobj=packed, mode="w") as file:
        info = tarfile.TarInfo("large.png")
        info.size = 2**28 + 1
        with open("/dev/zero", "rb") as zeros:  # noqa: PTH123
            file.addfile(info, zeros)
    items = {item.key: item.image for item in _items(tmp_path)}
    assert list(items) == ["0", "1", "2", "3", "large"]
    reasons = {key: image.reason for key, image in items.items() if isinstance(image, Unreadable)}
    assert "only 1.heic" in reasons["1"] and reasons["2"] == "no picture"
    assert "a file of 268,435,457 bytes, at most 268,435,456 are read" in reasons["large"]
    batches = evaluation_batches(DataConfig(path=str(tmp_path)), image_size=4, channels=3, batch_size=8)
    assert [batch["keys"] for batch in batches] == [["0", "3"]] and set(batches.broken) == {"1", "2", "large"}


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tgz", ".TAR"])
def test_damaged_tars_are_one_line(tmp_path: Path, ending: str) -> None:
    whole = tar(tmp_path / "whole.tar", {f"{i}.png": png(i) for i in range(40)}).read_bytes()
    content = gzip.compress(whole) if "gz" in ending else whole
    for damaged in (b"", content[: len(content) // 2], b"\xff" * 600):
        (tmp_path / f"d{ending}").write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"d{ending}: cannot be read as webdataset") as error:
            _items(tmp_path / f"d{ending}")
        assert "\n" not in str(error.value)


def test_a_header_of_any_size_is_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@PaxHeader")
    info.size, info.type = 6 << 30, tarfile.XHDTYPE
    for name, opened in (("a.tar", open), ("a.tar.gz", gzip.open)):
        with opened(tmp_path / name, "wb") as file:
            file.write(info.tobuf(tarfile.USTAR_FORMAT) + bytes(10240))
        with pytest.raises(ValueError, match=r"cannot be read as webdataset: a header of 6,442,450,944 bytes"):
            _items(tmp_path / name)


def test_packed_tars(tmp_path: Path) -> None:
    whole = tar(tmp_path / "whole.tar", {f"{i}.png": png(i) for i in range(3)}).read_bytes()
    for number, pack in enumerate((gzip.compress, bz2.compress, lzma.compress)):
        (tmp_path / f"{number}.tgz").write_bytes(pack(whole))
        assert list(_values(_items(tmp_path / f"{number}.tgz")).values()) == [0, 1, 2]


def test_a_changed_tar_is_read_anew(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"0.png": png(1)})
    assert _values(_items(path)) == {"0": 1}
    tar(path, {"0.png": png(2), "1.png": png(3)})
    assert _values(_items(path)) == {"0": 2, "1": 3}


def test_tars_stream_like_tables(tmp_path: Path) -> None:
    for shard in range(2):
        tar(
            tmp_path / f"{shard}.tar",
            {
                f"{shard}{i}.{e}": png(4 * shard + i) if e == "png" else str(4 * shard + i).encode()
                for i in range(4)
                for e in ("png", "cls")
            },
        )
    config = DataConfig(path=str(tmp_path), streaming=True, workers=2, crop="center", shuffle_buffer=3)
    batches = iter(training_batches(config, image_size=4, channels=3, batch_size=4))
    seen = [next(batches) for _ in range(2)]
    batches.close()
    assert sorted(label for batch in seen for label in batch["labels"].tolist()) == list(range(8))
    for batch in seen:
        assert ((batch["images"][:, 0, 0, 0] + 1) * 127.5).round().long().equal(batch["labels"])
