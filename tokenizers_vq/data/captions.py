"""Captions and further classes of a folder of pictures: `metadata.csv`, `.jsonl` or `.parquet` with a column
`file_name`, as `imagefolder` reads them."""

from __future__ import annotations

import csv
import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers_vq.config import nearest
from tokenizers_vq.data.columns import NONE, caption_column
from tokenizers_vq.data.files import parquet_file, readable


def read(root: Any, metadata: Sequence[str], column: str | None) -> dict[str, tuple[str, ...]] | None:
    """Captions by a picture's path below `root`; None where there are none at all, or `column` is none.

    `metadata`: paths of the files below `root`; a picture is named relative to the file's folder. Raises `ValueError`
    for a file that cannot be read, or one without the column that is asked for.
    """
    if column == NONE:
        return None
    if not metadata and column is not None:
        raise ValueError(f"{readable(str(root))}: no column '{column}' of captions: it holds no metadata.csv or .jsonl")
    found: dict[str, tuple[str, ...]] = {}
    there = False
    for name in metadata:
        where, rows = readable(str(root / name)), list(_rows(root / name, readable(str(root / name))))
        if not rows or "file_name" not in rows[0]:
            if column is None:
                continue
            raise _nameless(where)
        textual = [key for key, value in rows[0].items() if key != "file_name" and _texts(value) is not None]
        chosen = caption_column(textual, column, where, [key for key in rows[0] if key != "file_name"])
        if chosen is None:
            continue
        there = True
        for number, row in enumerate(rows, start=1):
            texts = _texts(row.get(chosen))
            if texts is None:
                raise ValueError(f"{where}: row {number} of column '{chosen}' holds no text")
            path = _picture(name, row)
            found[path] = found.get(path, ()) + texts
    return found if there else None


class Classes(NamedTuple):
    """One column of classes."""

    numbers: dict[str, int]
    """by a picture's path below the folder; pictures that no row names have none"""
    names: tuple[str, ...] | None
    """by number; None where the column holds numbers"""


def classes(root: Path, metadata: Sequence[str], column: str) -> Classes:
    """A column of classes, names or whole numbers from 0. Arguments as of `read`.

    Raises `ValueError` for a file that cannot be read, one without that column, and for what is no class.
    """
    if not metadata:
        raise ValueError(f"{readable(str(root))}: no column '{column}' of classes: it holds no metadata.csv or .jsonl")
    values: dict[str, Any] = {}
    for name in metadata:
        where, rows = readable(str(root / name)), list(_rows(root / name, readable(str(root / name))))
        if rows and "file_name" not in rows[0]:
            raise _nameless(where)
        if rows and column not in rows[0]:
            others = [key for key in rows[0] if key != "file_name"]
            raise ValueError(f"{where}: no column '{column}' of classes{nearest(column, others)}")
        for number, row in enumerate(rows, start=1):
            value = row.get(column)
            known = value != "" if isinstance(value, str) else type(value) is int and value >= 0
            if not known:
                raise ValueError(f"{where}: row {number} of column '{column}' holds no name and no number of a class")
            values[_picture(name, row)] = value
    if all(isinstance(value, int) or value.isdecimal() for value in values.values()):
        return Classes({path: int(value) for path, value in values.items()}, None)
    names = tuple(sorted({str(value) for value in values.values()}))
    places = {name: number for number, name in enumerate(names)}
    return Classes({path: places[str(value)] for path, value in values.items()}, names)


def _nameless(where: str) -> ValueError:
    return ValueError(f"{where}: no column 'file_name', which says what picture a row speaks of")


def _picture(metadata: str, row: Mapping[str, Any]) -> str:
    """The path below the root of the picture that a row of this file speaks of."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(metadata), str(row.get("file_name"))))


def _texts(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        return None
    return tuple(text for text in texts if text)


def _rows(path: Any, where: str) -> Iterator[Mapping[str, Any]]:
    try:
        if path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                yield from csv.DictReader(file)
        elif path.suffix == ".jsonl":
            with path.open(encoding="utf-8-sig") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        row = json.loads(line)
                        if not isinstance(row, dict):
                            raise ValueError(f"line {number} holds no object")
                        yield row
        else:
            with parquet_file(path) as opened:
                yield from opened.read().to_pylist()
    except (ValueError, csv.Error, RecursionError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{where}: cannot be read: {reason}; put it right, or set caption_column=none") from None
