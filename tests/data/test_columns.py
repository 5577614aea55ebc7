"""Which column is the image, which the class, which the captions; what cannot be one is refused with file and row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.conftest import png, tar
from tokenizers_vq import images
from tokenizers_vq.data import columns, tables
from tokenizers_vq.data.columns import Unreadable
from tokenizers_vq.data.loading import evaluation_batches, training_batches
from tokenizers_vq.data.sources import DataConfig, Source, open_source, open_stream


def _open(path: object, **fields: object) -> Source:
    return open_source(DataConfig(path=str(path), **fields))


def _table(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


PICTURES = [png(7), None]
KINDS = {
    "binary": pa.array(PICTURES),
    "large": pa.array(PICTURES, pa.large_binary()),
    "view": pa.array(PICTURES, pa.binary_view()),
    "struct": pa.array([{"bytes": PICTURES[0], "path": "a.png"}, None]),
    "struct of null": pa.array([{"bytes": PICTURES[0], "path": "a.png"}, {"bytes": None, "path": None}]),
    "large struct": pa.array(
        [{"bytes": PICTURES[0], "path": "a.png"}, None],
        pa.struct({"bytes": pa.large_binary(), "path": pa.large_string()}),
    ),
    "view struct": pa.array(
        [{"bytes": PICTURES[0], "path": "a.png"}, None],
        pa.struct({"bytes": pa.binary_view(), "path": pa.string_view()}),
    ),
    "bytes alone": pa.array([{"bytes": PICTURES[0]}, None]),
    "dictionary": pa.array(PICTURES).dictionary_encode(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_arrow_types_of_pictures(tmp_path: Path, kind: str) -> None:
    """Beside each a second picture in every row: a null one is broken, never the other."""
    other = pa.array([{"bytes": png(99), "path": "b.png"}] * 2)
    path = _table(
        tmp_path / "a.parquet", thumbnail=other, image=KINDS[kind], n=pa.array(["x", "y"]).dictionary_encode()
    )
    good, null = _open(path).items([0, 1])
    assert int(images.decode(good.image)[0, 0, 0]) == 7
    assert isinstance(null.image, Unreadable) and "null" in null.image.reason
    stream = open_stream(DataConfig(path=str(path), streaming=True))
    [rows] = stream.dataset.iter(batch_size=2)
    assert stream.columns.item({name: column[0] for name, column in rows.items()}, 0).image == PICTURES[0]
    batches = evaluation_batches(DataConfig(path=str(path)), image_size=4, channels=3, batch_size=2)
    assert [len(batch["keys"]) for batch in batches] == [1] and len(batches.broken) == 1


def test_image_comes_first_else_a_person_is_asked(tmp_path: Path) -> None:
    cell = pa.array([{"bytes": png(1), "path": "a.png"}])
    assert _open(_table(tmp_path / "a.parquet", mask=cell, image=cell)).columns.image == "image"
    assert _open(_table(tmp_path / "b.parquet", mask=cell, Image=cell)).columns.image == "Image"
    assert _open(_table(tmp_path / "c.parquet", photo=cell, mask_name=["a"])).columns.image == "photo"
    assert _open(_table(tmp_path / "d.parquet", image=[png(1)], note=["a"])).columns.image == "image"
    with pytest.raises(ValueError, match="several columns hold images: left, right; set image_column to one"):
        _open(_table(tmp_path / "e.parquet", left=cell, right=cell))
    with pytest.raises(ValueError, match=r"column 'image' holds List.*, not images"):
        _open(_table(tmp_path / "f.parquet", image=[[1, 2]]), image_column="image")


@pytest.mark.parametrize(
    ("labels", "row", "words"),
    [
        (pa.array([0, None, 1]), 1, "null"),
        (pa.array([0.0, 1.0, float("nan")]), 2, "nan"),
        (pa.array([0.5, 1.0, 0.0]), 0, "0.5"),
        (pa.array([0.0, 1.0, float("inf")]), 2, "inf"),
        (pa.array([0, -7, 1]), 1, "-7"),
        (pa.array([0, 2**64 - 1, 1], pa.uint64()), 1, "18446744073709551615"),
        (pa.array(["a", None, "b"]), 1, "null"),
    ],
)
def test_labels_that_are_no_class_are_refused_with_file_and_row(
    tmp_path: Path, labels: pa.Array, row: int, words: str
) -> None:
    image = [png(1)] * 3
    path = _table(tmp_path / "l.parquet", image=image, label=labels)
    with pytest.raises(ValueError, match=rf"l.parquet: row {row} of column 'label' holds {words}; a label is") as error:
        _open(path)
    assert "\n" not in str(error.value) and "label_column=none" in str(error.value)
    assert [item.label for item in _open(path, label_column="none").items(range(3))] == [-1] * 3
    streamed = DataConfig(path=str(path), streaming=True)
    with pytest.raises(ValueError, match=rf"row {row} of column|which a stream cannot number"):
        list(evaluation_batches(streamed, image_size=4, channels=3, batch_size=3))
    _table(tmp_path / "d/a.parquet", image=image, label=labels.take([0 if row else 2] * 3))
    (tmp_path / "d/b.parquet").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=rf"d: b.parquet, row {row} of column 'label'"):
        _open(tmp_path / "d")


def test_lists_are_no_labels(tmp_path: Path) -> None:
    path = _table(tmp_path / "l.parquet", image=[png(1)] * 2, label=[[0, 1], [1]])
    for fields in ({}, {"label_column": "label"}):
        with pytest.raises(ValueError, match=r"l.parquet: row 0 of column 'label' holds List.*; a label is one whole"):
            _open(path, **fields)
    assert _open(path, label_column="none").label_names is None


@pytest.mark.parametrize(
    ("labels", "right", "names"),
    [
        (pa.array([1.0, 0.0, 1.0]), [1, 0, 1], None),
        (pa.array([True, False, True]), [1, 0, 1], None),
        (pa.array([3, -1, 0], pa.int8()), [3, -1, 0], None),
        (pa.array(["dog", "cat", "dog"]), [1, 0, 1], ("cat", "dog")),
        (pa.array(["dog", "cat", "dog"], pa.large_string()), [1, 0, 1], ("cat", "dog")),
        (pa.array(["dog", "cat", "dog"], pa.string_view()), [1, 0, 1], ("cat", "dog")),
        (pa.array(["dog", "cat", "dog"]).dictionary_encode(), [1, 0, 1], ("cat", "dog")),
    ],
)
def test_labels_of_every_arrow_type(tmp_path: Path, labels: pa.Array, right: list[int], names: Any) -> None:
    source = _open(_table(tmp_path / "l.parquet", image=[png(1)] * 3, label=labels))
    assert [item.label for item in source.items(range(3))] == right and source.label_names == names


def test_a_class_that_is_text_has_one_number_in_all_splits(tmp_path: Path) -> None:
    names = ["ant", "bee", "cat", "dog"]
    _table(tmp_path / "p/train-0.parquet", image=[png(1)] * 4, label=names)
    _table(tmp_path / "p/test-0.parquet", image=[png(1)] * 2, label=["cat", "dog"])
    tar(
        tmp_path / "t/train-0.tar",
        {f"{name}.{e}": png(1) if e == "png" else name.encode() for name in names for e in ("png", "cls")},
    )
    tar(tmp_path / "t/test-0.tar", {"0.png": png(1), "0.cls": b"cat"})
    for folder in ("p", "t"):
        test = _open(tmp_path / folder, split="test")
        assert test.label_names == tuple(names) and test.items([0])[0].label == 2
        with pytest.raises(ValueError, match="column 'label' holds classes as text, which a stream cannot number"):
            open_stream(DataConfig(path=str(tmp_path / folder), streaming=True))


def _named(path: Path, names: list[str]) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(len(names))], "label": list(range(len(names)))}
    path.parent.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(rows, features).to_parquet(path)


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_numbers_with_names_are_one_numbering_in_all_splits(tmp_path: Path, kind: str) -> None:
    _named(tmp_path / "a/train.parquet", ["cat", "dog"])
    _named(tmp_path / "a/test.parquet", ["dog", "cat", "ant"])
    path = tmp_path / "a"
    if kind == "saved":
        path = tmp_path / "b"
        parts = {name: datasets.Dataset.from_parquet(str(tmp_path / f"a/{name}.parquet")) for name in ("train", "test")}
        datasets.DatasetDict(parts).save_to_disk(path)
    train, test = _open(path, split="train"), _open(path, split="test")
    assert train.label_names == test.label_names == ("ant", "cat", "dog")
    assert [item.label for item in train.items(range(2))] == [1, 2]
    assert [item.label for item in test.items(range(3))] == [2, 1, 0]
    stream = open_stream(DataConfig(path=str(path), split="test", streaming=True))
    assert [stream.columns.item(row, 0).label for row in stream.dataset] == [2, 1, 0]


def test_files_of_one_split_with_other_columns_are_refused(tmp_path: Path) -> None:
    """`datasets` would read a class number of one file by the names of another, or leave a column of it out."""
    image = [png(1)]
    for number, (one, other, words) in enumerate(
        (
            ({"image": image, "label": [1]}, {"image": image}, "classes are in column 'label' of a.parquet, but in no"),
            ({"image": image}, {"image": image, "label": [1]}, "classes are in no column of a.parquet, but in column"),
            ({"image": image}, {"image": image, "text": ["x"]}, "captions are in no column of a.parquet"),
            ({"image": image, "label": [1]}, {"image": image, "label": ["x"]}, "does not name classes as a.parquet"),
        )
    ):
        _table(tmp_path / f"{number}/a.parquet", **one)
        _table(tmp_path / f"{number}/b.parquet", **other)
        with pytest.raises(ValueError, match=words):
            _open(tmp_path / str(number))
    assert len(_open(tmp_path / "1", label_column="none")) == 2
    _named(tmp_path / "c/a.parquet", ["cat", "dog"])
    _named(tmp_path / "c/b.parquet", ["dog", "cat"])
    with pytest.raises(ValueError, match=r"column 'label' of b.* does not name classes"):
        _open(tmp_path / "c")
    _table(tmp_path / "d.parquet", image=pa.array([], pa.binary()))
    with pytest.raises(ValueError, match="holds no images"):
        _open(tmp_path / "d.parquet")


def test_names_of_columns_in_capitals(tmp_path: Path) -> None:
    path = _table(tmp_path / "a.parquet", Image=[png(1)], Label=[3], Caption=["a cat"])
    assert _open(path).items([0])[0][2:4] == (3, ("a cat",))


def test_several_class_columns_of_unknown_names_are_no_class(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"image": datasets.Image(), "hat": names, "smile": names})
    rows = {"image": [{"bytes": png(1), "path": None}], "hat": [1], "smile": [0]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    assert _open(tmp_path / "a.parquet").label_names is None
    assert _open(tmp_path / "a.parquet", label_column="smile").label_names == ("no", "yes")


def test_a_table_is_not_followed_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(9))
    (tmp_path / "d/in").mkdir(parents=True)
    (tmp_path / "d/in/own.png").write_bytes(png(5))
    names = [
        "in/own.png",
        str(tmp_path / "d/in/own.png"),
        str(tmp_path / "secret.png"),
        "../secret.png",
        "in/../../secret.png",
    ]
    for cells in (names, [{"bytes": None, "path": name} for name in names]):
        path = _table(tmp_path / "d/a.parquet", image=cells)
        found = [item.image for item in _open(path, image_column="image").items(range(5))]
        assert found[:2] == [str(tmp_path / "d/in/own.png")] * 2
        assert all(isinstance(image, Unreadable) and "outside the data's folder" in image.reason for image in found[2:])
    features = datasets.Features({"image": datasets.Image()})
    rows = [{"bytes": None, "path": str(tmp_path / "secret.png")}]
    datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(tmp_path / "d/a.parquet")
    with pytest.raises(ValueError, match=r"no image can be read; the first, .*outside the data's folder"):
        list(evaluation_batches(DataConfig(path=str(tmp_path / "d/a.parquet")), image_size=4, channels=3, batch_size=1))
    state = {"_data_files": [{"filename": "../other.arrow"}]}
    (tmp_path / "s").mkdir()
    (tmp_path / "s/state.json").write_text(json.dumps(state))
    (tmp_path / "s/dataset_info.json").write_text("{}")
    with pytest.raises(ValueError, match="names a file outside its folder"):
        _open(tmp_path / "s")


def test_captions_of_tables(tmp_path: Path) -> None:
    image = [png(1), png(2), png(3)]
    texts = ["a cat", None, "a dog"]
    lists = [["a cat", "one cat"], None, []]
    one = _table(tmp_path / "one.parquet", image=image, caption=texts, other=["x", "y", "z"], n=[1, 2, 3])
    many = _table(tmp_path / "many.parquet", image=image, captions=pa.array(lists))
    assert [item.captions for item in _open(one).items(range(3))] == [("a cat",), (), ("a dog",)]
    assert [item.captions for item in _open(many).items(range(3))] == [("a cat", "one cat"), (), ()]
    assert _open(one, caption_column="other").items([0])[0].captions == ("x",)
    assert not _open(one, caption_column="none").has_captions
    assert not _open(_table(tmp_path / "number.parquet", image=image, caption=[1, 2, 3])).has_captions
    for name, words in (("capton", "no column 'capton' of captions; its columns: image, caption, other, n"),
                        ("n", "column 'n' holds no text")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            _open(one, caption_column=name)
    for workers in (0, 1):
        config = DataConfig(path=str(many), workers=workers)
        batches = iter(training_batches(config, image_size=4, channels=3, batch_size=3))
        batch = next(batches)
        assert sorted(zip(batch["keys"], batch["captions"], strict=True)) == [
            ("00000000", ("a cat", "one cat")), ("00000001", ()), ("00000002", ())
        ]  # fmt: skip
        batches.close()
    config = DataConfig(path=str(many), workers=0, streaming=True)
    assert [b["captions"] for b in evaluation_batches(config, image_size=4, channels=3, batch_size=3)] == [
        [("a cat", "one cat"), (), ()]
    ]
    bare = DataConfig(path=str(many), caption_column="none")
    assert [b["captions"] for b in evaluation_batches(bare, image_size=4, channels=3, batch_size=3)] == [None]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_captions_of_a_folder(tmp_path: Path, kind: str) -> None:
    for name in ("train/a.png", "train/b.png", "test/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
    rows = [{"file_name": "a.png", "text": "a cat, grey"}, {"file_name": "a.png", "text": 'ein "Kater"'}]
    if kind == "csv":
        content = 'file_name,text\na.png,"a cat, grey"\na.png,"ein ""Kater"""\n'
        (tmp_path / "train/metadata.csv").write_text(content)
    elif kind == "jsonl":
        (tmp_path / "train/metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    else:
        _table(tmp_path / "train/metadata.parquet", **{key: [row[key] for row in rows] for key in rows[0]})
    source = _open(tmp_path)
    assert [item.captions for item in source.items([0, 1])] == [("a cat, grey", 'ein "Kater"'), ()]
    assert "left out" not in source.description
    assert not _open(tmp_path, split="test").has_captions
    with pytest.raises(ValueError, match=f"metadata.{kind}: no column 'caption' of captions; its columns: text"):
        _open(tmp_path, caption_column="caption")
    assert not _open(tmp_path, caption_column="none").has_captions


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_further_classes_of_a_folder(tmp_path: Path, kind: str) -> None:
    for name in ("train/a.png", "train/b.png", "train/c.png", "test/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
    rows = {"train/a.png": ("round", 3), "train/b.png": ("flat", 0), "test/d.png": ("art", 1)}
    columns_ = {
        "file_name": list(rows),
        "text": [f"a picture of {name}" for name in rows],
        "style": [style for style, _ in rows.values()],
        "number": [number for _, number in rows.values()],
    }
    lines = [dict(zip(columns_, row, strict=True)) for row in zip(*columns_.values(), strict=True)]
    if kind == "csv":
        content = [",".join(columns_), *(",".join(map(str, line.values())) for line in lines)]
        (tmp_path / "metadata.csv").write_text("\n".join(content))
    elif kind == "jsonl":
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    else:
        _table(tmp_path / "metadata.parquet", **columns_)
    source = _open(tmp_path, split="train", class_columns=("style", "number"))
    assert source.class_names == {"style": ("art", "flat", "round"), "number": None}
    items = source.items([0, 1, 2])
    assert [item.classes for item in items] == [(2, 3), (1, 0), (-1, -1)]  # no row speaks of the last
    assert [item.captions for item in items] == [("a picture of train/a.png",), ("a picture of train/b.png",), ()]
    with pytest.raises(ValueError, match=f"metadata.{kind}: no column 'stile' of classes; did you mean 'style'"):
        _open(tmp_path, split="train", class_columns=("stile",))


def test_further_classes_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    with pytest.raises(ValueError, match=r"no column 'style' of classes: it holds no metadata.csv or .jsonl"):
        _open(tmp_path, class_columns=("style",))
    for value in ("", None, -1, 0.5, True):
        (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "style": value}))
        with pytest.raises(ValueError, match="row 1 of column 'style' holds no name and no number of a class"):
            _open(tmp_path, class_columns=("style",))


def test_metadata_that_fits_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    for content, words in (
        ('{"file_name": "b.png", "text": "b"}', "none of the pictures is named in metadata.jsonl"),
        ('{"file_name": "a.png", "text": 3}\n{"file_name": ', "metadata.jsonl: cannot be read"),
        (
            '{"file_name": "a.png", "text": "a"}\n{"file_name": "a.png", "text": 3}',
            "row 2 of column 'text' holds no text",
        ),
    ):
        (tmp_path / "metadata.jsonl").write_text(content)
        with pytest.raises(ValueError, match=words):
            _open(tmp_path)
        assert "no captions of metadata.jsonl" in _open(tmp_path, caption_column="none").description
    (tmp_path / "metadata.jsonl").write_text('{"name": "a.png", "text": "b"}')  # of another make
    assert not _open(tmp_path).has_captions
    with pytest.raises(ValueError, match="no column 'file_name'"):
        _open(tmp_path, caption_column="text")


def test_a_table_is_read_so_many_rows_at_a_time_as_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that pack into little are counted unpacked, and a file that is too large is named (bounds as 1/4096)."""
    monkeypatch.setattr(columns, "LARGEST", 2**16)
    monkeypatch.setattr(tables, "_BYTES", 2**16)
    asked: list[int] = []
    load = tables._load
    monkeypatch.setattr(tables, "_load", lambda *args, **how: asked.append(how["batch_size"]) or load(*args, **how))
    packed: dict[str, Any] = {"compression": "zstd", "use_dictionary": False}
    for name, cells, rows in (
        ("small", [png(1)] * 3, 128),
        ("large", [bytes(2**14)] * 9, 3),
        ("huge", [png(1), bytes(2**16 + 1), png(2)], 2),
    ):
        pq.write_table(pa.table({"image": pa.array(cells)}), tmp_path / f"{name}.parquet", **packed)
        assert len(_open(tmp_path / f"{name}.parquet")) == len(cells) and asked[-1] == rows
    good, large, _ = _open(tmp_path / "huge.parquet").items(range(3))
    assert (
        isinstance(large.image, Unreadable) and "a file of 65,537 bytes, at most 65,536 are read" in large.image.reason
    )
    assert int(images.decode(good.image)[0, 0, 0]) == 1
