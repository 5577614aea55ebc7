"""Mutated folders of codes: `python -m tests.fuzz.codes --count 100000`.

An input is a change of `codes.json` (its values, or its bytes), of a shard (columns, metadata, or bytes), or a layout
of anything. What is read must be whole: as many names and classes as rows, every code within its size, and, where bytes
alone changed, the codes that were written.
"""

from __future__ import annotations

import copy
import io
import json
import random
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tests.fuzz.harness import main
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.data.shards import CodesInfo, read_codes, shard_name
from tokenizers_vq.data.shards.files import schema
from tokenizers_vq.language import LanguageModelIds

DOCUMENTED = (ValueError, FileNotFoundError)
LAYOUT = CodeLayout(((2,), (2, 2)), 2, (8, 9, 300, 7))
ROWS = 12

INFO = CodesInfo(
    tokenizer="toy",
    fingerprint="a" * 64,
    layout=LAYOUT.to_dict(),
    image_size=(16, 8),
    channels=3,
    views="flip",
    precision="fp32",
    data={"path": "photos", "range": (0.0, 1.0)},
    found=ROWS,
    label_names=("cat", "dog"),
    captions=True,
    shards=2,
    images=ROWS,
    broken={},
)


def _table(part: int) -> pa.Table:
    draw = np.random.default_rng(part)
    codes = (draw.random((ROWS, LAYOUT.length)) * np.array(LAYOUT.sizes)[LAYOUT.streams()]).astype(np.uint16)
    columns = {
        "codes": pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), LAYOUT.length),
        "fingerprint": pa.array([INFO.fingerprint] * ROWS),
        "key": pa.array([f"{part}-{row // 2}" for row in range(ROWS)]),
        "label": pa.array(np.arange(ROWS) // 2 % 3 - 1),
        "view": pa.array([0, 1] * (ROWS // 2), pa.int8()),
        "captions": pa.array([["a cat", "one"] if row < 6 else None for row in range(ROWS)], pa.list_(pa.string())),
    }
    metadata = {"how": json.dumps(INFO.how()), "broken": "{}", "rows": str(ROWS)}
    return pa.table(columns, schema=schema(LAYOUT, 2, True)).replace_schema_metadata(metadata)


def _bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, write_page_checksum=True)
    return buffer.getvalue()


TABLES = [_table(part) for part in range(2)]
SHARDS = [_bytes(table) for table in TABLES]
WRITTEN = np.concatenate([table["codes"].combine_chunks().flatten().to_numpy() for table in TABLES])

ANYTHING: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 10**9, 10**18, 2**63, 10**30, 0.5, float("nan"), float("inf"), "", "a", "\ud800",
    "a\nb\x1b[2J", [], [[]], [None], {}, {"a": {}}, [1, 2], [[2], [2, 2]], [8, 9, 300, 7], "8" * 100,
]  # fmt: skip


class Input(NamedTuple):
    """Content of the folder's files, or arguments of a layout."""

    files: dict[str, bytes] | None
    arguments: Any
    same: bool
    """whether what is read must be what was written"""


def make(number: int) -> Input:
    """Input number `number`."""
    draw = random.Random(number)
    kind = draw.choice(
        ["values", "values", "info bytes", "shard bytes", "shard bytes", "columns", "metadata", "layout"]
    )
    if kind == "layout":
        return Input(None, [_anything(draw) for _ in range(3)], False)
    files = {
        "codes.json": json.dumps(INFO.to_dict()).encode(),
        **{shard_name(part, 2): content for part, content in enumerate(SHARDS)},
    }
    part = draw.randrange(2)
    if kind == "values":
        files["codes.json"] = json.dumps(_mutated(INFO.to_dict(), draw)).encode()
    elif kind == "info bytes":
        files["codes.json"] = _flipped(files["codes.json"], draw)
    elif kind == "shard bytes":
        files[shard_name(part, 2)] = _flipped(SHARDS[part], draw)
    elif kind == "columns":
        files[shard_name(part, 2)] = _bytes(_other_column(TABLES[part], draw))
    else:
        files[shard_name(part, 2)] = _bytes(_other_metadata(TABLES[part], draw))
    return Input(files, None, kind == "shard bytes")


def _anything(draw: random.Random) -> Any:
    value = copy.deepcopy(draw.choice([*ANYTHING, LAYOUT.to_dict()]))
    for _ in range(draw.choice([0, 0, 0, 1, 2, 200])):
        value = [value] if draw.random() < 0.5 else {"grids": value}
    return value


def _mutated(data: Any, draw: random.Random) -> Any:
    """A copy with one to three values, at any depth, changed, gone or added."""
    data = copy.deepcopy(data)
    for _ in range(draw.choice([1, 1, 2, 3])):
        at = data
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = draw.choice(keys)
            if isinstance(at[key], (dict, list)) and draw.random() < 0.7:
                at = at[key]
                continue
            if draw.random() < 0.15:
                del at[key]
            else:
                at[key] = _anything(draw)
            break
    return data


def _flipped(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    way = draw.random()
    if way < 0.1:
        return content[: draw.randrange(len(content))]
    if way < 0.2:
        at = draw.randrange(len(content))
        return content[:at] + draw.randbytes(draw.randint(1, 40)) + content[at + draw.randint(0, 40) :]
    for _ in range(draw.choice([1, 1, 1, 2, 8])):
        # half of them in the last third, where a parquet file describes itself
        at = (
            draw.randrange(len(content)) if draw.random() < 0.5 else draw.randrange(len(content) * 2 // 3, len(content))
        )
        changed[at] = draw.choice([changed[at] ^ (1 << draw.randrange(8)), 0, 255, 127, 128, draw.randrange(256)])
    return bytes(changed)


def _other_column(table: pa.Table, draw: random.Random) -> pa.Table:
    place = draw.randrange(table.num_columns)
    name, way = table.column_names[place], draw.random()
    if way < 0.15:
        return table.drop_columns(name)
    if way < 0.3:
        return table.append_column(name, table[name])
    if way < 0.4:
        return table.slice(draw.randrange(ROWS), draw.randrange(ROWS))
    values: list[Any] = table[name].to_pylist()
    kinds = [pa.bool_(), pa.int8(), pa.int64(), pa.uint64(), pa.float32(), pa.string(), pa.large_string(), pa.binary()]
    kind = draw.choice([table.schema.field(place).type, *kinds])
    if draw.random() < 0.5:
        kind = draw.choice([pa.list_(kind), pa.list_(kind, LAYOUT.length), pa.dictionary(pa.int8(), kind), kind])
    single = [None, True, 0, 5, -1, -2, 2**40, 2**63, 0.5, "a", "0-0", b"\xff\xfe", ["a"], [None], [1] * LAYOUT.length]
    for _ in range(draw.choice([1, 1, 3])):
        values[draw.randrange(ROWS)] = draw.choice(single)
    if draw.random() < 0.4:
        values = [draw.choice(single)] * ROWS
    try:
        return table.set_column(place, name, pa.array(values, kind))
    except (pa.ArrowException, TypeError, ValueError, OverflowError, KeyError):
        nulls = pa.nulls(ROWS, draw.choice([pa.null(), kind]))
        return table.set_column(place, name, nulls)


def _other_metadata(table: pa.Table, draw: random.Random) -> pa.Table:
    how = _mutated({"how": INFO.how(), "broken": {"a": "b"}, "rows": ROWS}, draw)
    written = {name: json.dumps(value) for name, value in how.items()}
    if draw.random() < 0.4 and written:
        written[draw.choice(list(written))] = draw.choice(
            ["", "{", "[" * 5000, '{"a":' * 5000, "\x00", "NaN", "9" * 5000]
        )
    return table.replace_schema_metadata(written)


def call(given: Input) -> None:
    """Read an input."""
    if given.files is None:
        _lay_out(*given.arguments)
        return
    with tempfile.TemporaryDirectory() as name:
        for file, content in given.files.items():
            (Path(name) / file).write_bytes(content)
        shards = read_codes(name)
        codes, labels, keys = shards.codes, shards.labels, shards.keys
        assert len(shards) == len(codes) == len(labels) == len(keys) == len(shards.names)
        assert all(isinstance(key, str) for key in keys)
        assert shards.captions is None or len(shards.captions) == len(codes)
        sizes = torch.tensor(shards.layout.sizes)[shards.layout.streams()]
        assert not len(codes) or bool(((codes >= 0) & (codes < sizes)).all())
        if given.same:
            assert np.array_equal(codes.numpy().reshape(-1), WRITTEN), "other codes than were written"


def _lay_out(grids: Any, levels: Any, sizes: Any) -> None:
    refusals: list[BaseException] = []
    for make_layout in (
        lambda: CodeLayout(grids, levels, sizes),
        lambda: CodeLayout.from_dict(grids),
        lambda: CodeLayout.from_dict({"grids": grids, "levels": levels, "sizes": sizes}),
        lambda: LAYOUT.flatten(grids),
        lambda: LAYOUT.unflatten(grids),
        lambda: LAYOUT.split((grids, levels)),  # type: ignore[arg-type]
        lambda: LanguageModelIds(LAYOUT, grids, levels, sizes),
        lambda: LanguageModelIds(LAYOUT, 10).to_codes(grids),
        lambda: LanguageModelIds(LAYOUT, 10).to_ids(grids),
    ):
        try:
            make_layout()
        except ValueError as error:
            refusals.append(error)
    if refusals:
        raise max(refusals, key=lambda error: (str(error).count("\n"), len(str(error))))


if __name__ == "__main__":
    main(make, call, DOCUMENTED, "folders of codes")
