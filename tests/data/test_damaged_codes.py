"""A damaged file of a folder of codes is named, never read as something else; the same command encodes it again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.test_shards import Encoder, data, rows
from tokenizers_vq.data.shards import DamagedCodes, read_codes, shard_name, stored, write_codes

NAME = shard_name(1, 2)


def column(name: str, change: Callable[[pa.ChunkedArray], Any]) -> Callable[[pa.Table], pa.Table]:
    """A shard with one column changed; its metadata stays."""
    return lambda table: table.set_column(table.schema.get_field_index(name), name, [pa.array(change(table[name]))])


def first_null(values: pa.ChunkedArray) -> Any:
    return pa.array([None, *values.to_pylist()[1:]], values.type)


def as_codes(kind: pa.DataType, value: Any = 1) -> Callable[[pa.ChunkedArray], Any]:
    return lambda values: pa.array([[value] * 8] * len(values), pa.list_(kind, 8))


SHARDS: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "a null row of codes": (column("codes", first_null), "rows without codes"),
    "a null code": (column("codes", lambda c: pa.array([[None] * 8] * len(c), c.type)), "rows without codes"),
    "bool codes": (column("codes", as_codes(pa.bool_(), True)), r"codes of type fixed_size_list<.*bool"),
    "float codes": (column("codes", as_codes(pa.float32(), 0.5)), r"codes of type fixed_size_list<.*float"),
    "lists of any length": (column("codes", lambda c: c.cast(pa.list_(pa.uint16()))), "holds codes of type list<"),
    "negative codes": (column("codes", as_codes(pa.int64(), -1)), "beyond its layout's sizes"),
    "codes beyond": (column("codes", as_codes(pa.int64(), 1000)), "beyond its layout's sizes"),
    "no codes": (lambda table: table.drop_columns("codes"), "no column 'codes'"),
    "a null key": (column("key", first_null), "rows without a 'key'"),
    "whole keys": (column("key", lambda keys: pa.array(range(len(keys)))), "column 'key' of int64"),
    "no keys": (lambda table: table.drop_columns("key"), "no column 'key'"),
    "a null label": (column("label", first_null), "rows without a 'label'"),
    "words as labels": (column("label", lambda labels: ["a"] * len(labels)), "column 'label' of string"),
    "float labels": (column("label", lambda labels: labels.cast(pa.float32())), "column 'label' of float"),
    "no labels": (lambda table: table.drop_columns("label"), "no column 'label'"),
    "a class beyond": (column("label", lambda labels: [2] * len(labels)), "label 2, but codes.json names 2 classes"),
    "a label below": (column("label", lambda labels: [-2] * len(labels)), "label -2"),
    "a null fingerprint": (column("fingerprint", first_null), "rows without a 'fingerprint'"),
    "fewer rows": (lambda table: table.slice(1), "holds 11 rows, 12 were written"),
    "fewer rows, nothing said": (
        lambda table: table.slice(1).replace_schema_metadata(None),
        "holds 11 rows, codes.json says 12",
    ),
    "metadata": (
        lambda table: table.replace_schema_metadata({"broken": "["}),
        "metadata .broken. that is not valid JSON",
    ),
    "broken": (lambda table: table.replace_schema_metadata({"broken": '{"a": 1}'}), "'broken' that does not name"),
}


def table_of(path: Path) -> pa.Table:
    """A shard with what its footer says of it."""
    metadata = {name: value for name, value in pq.read_metadata(path).metadata.items() if name != b"ARROW:schema"}
    return pq.read_table(path).replace_schema_metadata(metadata)


@pytest.fixture
def codes(pictures: Path, tmp_path: Path) -> Path:
    write_codes(Encoder(), data(pictures), tmp_path / "c", shards=2)
    return tmp_path / "c"


def assert_encoded_again(folder: Path, pictures: Path, before: dict[str, list[int]], info: str) -> None:
    write_codes(Encoder(), data(pictures), folder)
    assert rows(folder) == before
    assert (folder / "codes.json").read_text() == info


@pytest.mark.parametrize("kind", SHARDS)
def test_a_damaged_shard_is_named_and_encoded_again(kind: str, codes: Path, pictures: Path, caplog) -> None:
    change, message = SHARDS[kind]
    before, info = rows(codes), (codes / "codes.json").read_text()
    pq.write_table(change(table_of(codes / NAME)), codes / NAME)
    with pytest.raises(DamagedCodes, match=message) as error:
        read_codes(codes)
    assert "\n" not in str(error.value) and str(codes) in str(error.value) and "encode again" in str(error.value)
    if "nothing said" in kind:  # a shard as older ones were: whole in itself, so that only the count is wrong
        return
    assert_encoded_again(codes, pictures, before, info)
    assert any(NAME in line and line.endswith("it is encoded again") for line in caplog.messages)


def read_all(folder: Path) -> None:
    shards = read_codes(folder)
    some = np.arange(len(shards))[::-1]
    shards[some], shards.keys_of(some), shards.labels_of(some), shards.captions_of(some)


@pytest.mark.parametrize("kind", SHARDS)
def test_of_more_codes_than_are_looked_at_together_damage_is_named_where_it_is_read(
    kind: str, codes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "SMALL", 0)
    read_all(codes)
    change, message = SHARDS[kind]
    pq.write_table(change(table_of(codes / NAME)), codes / NAME)
    whole = read_codes(codes)  # nothing is read yet
    assert len(whole[np.arange(10)]) == 10 and len(whole.keys_of(np.arange(10))) == 10
    with pytest.raises(DamagedCodes, match=message):
        read_all(codes)


def test_what_codes_json_says_of_rows_and_classes_is_not_believed(codes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "SMALL", 0)
    path = codes / "codes.json"
    info = json.loads(path.read_text())
    assert info["rows"] == [10, 12] and info["labels"] == {"label": {"bare": 0, "highest": 1}}
    for change, message in (
        ({"rows": [22]}, "the rows of 1 shards, where there are 2"),
        ({"rows": [10, 13]}, "says 22 images, but the shards hold 23 rows"),
        ({"rows": [11, 11]}, "holds 10 rows, codes.json says 11"),
        ({"labels": {"label": {"bare": 0, "highest": 0}}}, "the label 1 in 'label', where codes.json says"),
    ):
        path.write_text(json.dumps({**info, **change}))
        with pytest.raises(DamagedCodes, match=message):
            read_all(codes)
    path.write_text(json.dumps({**info, "rows": None, "labels": None}))  # of before
    read_all(codes)
    known = read_codes(codes).labels_info()
    assert (known.bare, known.highest) == (0, 1)


def test_bytes_that_changed_on_the_disk_are_noticed(codes: Path, pictures: Path) -> None:
    before, info, whole = rows(codes), (codes / "codes.json").read_text(), (codes / NAME).read_bytes()
    draw = np.random.default_rng(0)
    for place in draw.integers(0, len(whole), 60):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(draw.integers(8))
        (codes / NAME).write_bytes(changed)
        try:
            assert rows(codes) == before
        except ValueError as error:
            assert NAME in str(error) and "\n" not in str(error)
    for content in (b"", whole[: len(whole) // 2], b"PAR1", whole + b"x", bytes(1000)):
        (codes / NAME).write_bytes(content)
        with pytest.raises(DamagedCodes, match=f"{NAME} cannot be read"):
            read_codes(codes)
        assert_encoded_again(codes, pictures, before, info)


def test_few_bytes_that_claim_many_rows_are_refused(codes: Path) -> None:
    count = 100_000
    info = json.loads((codes / "codes.json").read_text())
    (codes / "codes.json").write_text(json.dumps({**info, "rows": None, "images": None}))
    first = pa.array(np.zeros(count, np.int8))
    same = {
        "codes": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(count * 8, np.uint16)), 8),
        "fingerprint": pa.DictionaryArray.from_arrays(first, pa.array(["a" * 64])),
        "key": pa.DictionaryArray.from_arrays(first, pa.array(["k" * 50_000])),
        "label": pa.array(np.zeros(count, np.int64)),
    }
    pq.write_table(pa.table(same), codes / NAME, row_group_size=count)
    assert (codes / NAME).stat().st_size < 200_000
    with pytest.raises(DamagedCodes, match=f"{NAME} of .* bytes claims 5,000,000,000 bytes of 'key'"):
        read_codes(codes)


def changed(**fields: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda info: {**info, **fields}


def layout(**fields: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda info: {**info, "layout": {**info["layout"], **fields}}


INFOS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a list": (lambda info: [info], "list"),
    "1e9 shards": (changed(shards=10**9), "shards: .*100000"),
    "0 shards": (changed(shards=0), "shards: "),
    "shards as a word": (changed(shards="2"), "shards: .*integer"),
    "shards as a bool": (changed(shards=True), "shards: .*integer"),
    "no layout": (lambda info: {k: v for k, v in info.items() if k != "layout"}, "layout: required"),
    "a layout of null": (changed(layout=None), "layout: "),
    "levels 0": (layout(levels=0), "layout: .*0 levels"),
    "10^18 levels": (layout(levels=10**18), "layout: .*levels need"),
    "sizes 0": (layout(sizes=[0]), "layout: sizes must be 1 to"),
    "sizes beyond 64 bits": (layout(sizes=[10**30]), "whole number of 100 bits"),
    "sizes of 10^18": (layout(sizes=[10**18]), r"layout\.sizes: 1,000,000,000,000,000,000 codes are too many"),
    "sizes as words": (layout(sizes=["8"]), "layout: sizes must be whole numbers"),
    "a grid of 10^18": (layout(grids=[[10**9, 10**9]]), "layout: a layout holds at most"),
    "no grids": (layout(grids=[], sizes=[]), "layout: grids must be"),
    "no fingerprint": (changed(fingerprint=None), "fingerprint: "),
    "a size of text": (changed(image_size="8"), "image_size: "),
    "views": (changed(views="many"), "views: no views 'many'"),
    "a range of words": (changed(data={"range": ["a", "b"]}), r"data\.range"),
    "one name twice": (changed(label_names=["a", "a"]), "label_names: two classes"),
    "names of numbers": (changed(label_names=[1, 2]), "label_names"),
    "-1 images": (changed(images=-1), "images: "),
    "broken": (changed(broken={"a": {"b": 1}}), "broken"),
}


@pytest.mark.parametrize("kind", INFOS)
def test_a_damaged_codes_json_is_named_and_written_again(kind: str, codes: Path, pictures: Path) -> None:
    change, message = INFOS[kind]
    path, before = codes / "codes.json", rows(codes)
    info = path.read_text()
    path.write_text(json.dumps(change(json.loads(info))))
    with pytest.raises(DamagedCodes, match=rf"codes\.json cannot be read .*{message}.* encode again") as error:
        read_codes(codes)
    assert "\n" not in str(error.value)
    assert_encoded_again(codes, pictures, before, info)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b'{"a": ' * 900 + b"1" + b"}" * 900, b"\xff\xfe", b"7"])
def test_what_is_no_json_is_named_and_written_again(content: bytes, codes: Path, pictures: Path, caplog) -> None:
    path, before = codes / "codes.json", rows(codes)
    info = path.read_text()
    path.write_bytes(content)
    with pytest.raises(DamagedCodes, match=r"codes\.json cannot be read"):
        read_codes(codes)
    assert_encoded_again(codes, pictures, before, info)
    path.unlink()
    assert_encoded_again(codes, pictures, before, info)
    assert sum("codes.json is written again" in line for line in caplog.messages) == 2


def test_sound_fields_that_the_shards_deny_are_written_again(codes: Path, pictures: Path) -> None:
    path, before = codes / "codes.json", rows(codes)
    info = path.read_text()
    for change in (layout(sizes=[3]), changed(images=21), changed(label_names=["b", "a"]), changed(shards=3)):
        path.write_text(json.dumps(change(json.loads(info))))
        if json.loads(path.read_text())["label_names"] == ["a", "b"]:
            with pytest.raises(ValueError, match="again"):
                read_codes(codes)
        assert_encoded_again(codes, pictures, before, info)


def test_codes_of_another_command_are_kept_where_codes_json_is_damaged(codes: Path, pictures: Path) -> None:
    before, info = rows(codes), (codes / "codes.json").read_text()
    (codes / "codes.json").write_text("{")
    others = ((Encoder(fingerprint="b" * 64), {}), (Encoder(image_size=16), {}), (Encoder(), {"limit": 3}))
    for encoder, config in others:
        with pytest.raises(ValueError, match=r"codes\.json cannot be read .*give another --out"):
            write_codes(encoder, data(pictures, **config), codes)
    (codes / "codes.json").write_text(info)
    assert rows(codes) == before


def test_a_shard_of_another_folder_is_refused(codes: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "a").rename(pictures / "c")
    write_codes(Encoder(), data(pictures), tmp_path / "other", shards=2)
    (codes / NAME).write_bytes((tmp_path / "other" / NAME).read_bytes())
    with pytest.raises(ValueError, match=rf"{NAME} was made with label_names = \['b', 'c'\], .* with \['a', 'b'\]"):
        read_codes(codes)
    (pictures / "c").rename(pictures / "a")
    with pytest.raises(ValueError, match=rf"{NAME} holds codes made with label_names = .*: move it away"):
        write_codes(Encoder(), data(pictures), codes)
    (codes / NAME).unlink()
    write_codes(Encoder(), data(pictures), codes)
    assert len(rows(codes)) == 22
