"""Folders of codes, read where they lie: rows by their numbers, with names and classes, when they are asked for."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.config import nearest
from tokenizers_vq.data.shards.files import class_column, count_rows, shard_name
from tokenizers_vq.data.shards.info import INFO, CodesInfo, DamagedCodes, LabelsInfo, one_line, read_info, short
from tokenizers_vq.data.shards.stored import Stored
from tokenizers_vq.data.transforms import VIEWS


class Rows:
    """`(n, N)` codes in their stored, small dtype, indexed as a NumPy array is by rows, read when asked for."""

    def __init__(self, stored: Stored) -> None:
        self._stored = stored
        self.dtype = stored.dtype
        self.shape = (len(stored), stored.layout.length)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """`(N,)` of a number, `(m, N)` of a slice, of m numbers or of a mask. Raises `IndexError` beyond the rows."""
        numbers = row_numbers(index, len(self))
        return self._gather(numbers.reshape(-1)).reshape(*numbers.shape, self.shape[1])

    def _gather(self, numbers: np.ndarray) -> np.ndarray:
        found: np.ndarray = self._stored.gather("codes", numbers)
        return found


def row_numbers(index: Any, count: int) -> np.ndarray:
    """What rows of `count` an index names, int64: of a slice, of numbers from -count on, or of a mask.

    Raises `IndexError` beyond them.
    """
    if isinstance(index, slice):
        return np.arange(*index.indices(count))
    numbers = np.asarray(index)
    if numbers.dtype == bool:
        if numbers.shape != (count,):
            raise IndexError(f"a mask over {count} rows has one value a row, got {numbers.shape}")
        numbers = numbers.nonzero()[0]
    if numbers.size and numbers.dtype.kind not in "iu":
        raise IndexError(f"rows are found by whole numbers, got {numbers.dtype}")
    numbers = numbers.astype(np.int64)
    if numbers.size and not -count <= numbers.min() <= numbers.max() < count:
        raise IndexError(f"{count} rows have no row {numbers.max() if numbers.max() >= 0 else numbers.min()}")
    return np.where(numbers < 0, numbers + count, numbers)


class Columns(Rows):
    """Some columns of rows, chosen where they are read."""

    def __init__(self, rows: Rows, columns: np.ndarray) -> None:
        self._rows, self._columns = rows, columns
        self.dtype, self.shape = rows.dtype, (len(rows), len(columns))

    def __getitem__(self, index: Any) -> np.ndarray:
        """As `Rows`, of these columns."""
        return self._rows[index][..., self._columns]


class Classes(NamedTuple):
    """One column of classes."""

    labels: np.ndarray
    """int64 `(n,)`, -1 where there is no class"""
    names: tuple[str, ...] | None
    """names of the classes by number, where there are any"""


class CodeShards:
    """The rows of a folder of codes, in order: `shards[indices]` is int64 `(b, N)`.

    Rows are read from their shards when they are asked for, and checked as they are read; `array` gives codes in their
    stored, small dtype. `codes`, `labels`, `keys`, `names` and `captions` are of all rows, in memory; `labels_of`,
    `keys_of` and `captions_of` of some alone. Any of them raises `DamagedCodes` where it meets a damaged row.
    """

    def __init__(self, folder: Path, info: CodesInfo, stored: Stored) -> None:
        self.folder, self._stored, self.array = folder, stored, Rows(stored)
        self._numbers: dict[str, np.ndarray] = {}
        self._labels_info: dict[str, LabelsInfo] = {}
        self.whole: CodeShards | None = None
        """of some grids alone: the codes of all"""
        self.info: dict[str, Any] = info.to_dict()
        """what `codes.json` says"""
        self.layout = CodeLayout.from_dict(info.layout)
        """layout of the codes"""
        self.fingerprint = info.fingerprint
        """fingerprint of the tokenizer that made them"""
        self.tokenizer = info.tokenizer
        """path or name of that tokenizer, as it was given"""
        self.label_names = info.label_names
        """names of the classes, where there are any"""

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, indices: Any) -> Tensor:
        if isinstance(indices, Tensor):
            indices = indices.numpy()
        return torch.from_numpy(self.array[indices].astype(np.int64))

    @property
    def small(self) -> bool:
        """Whether the codes are few enough to be looked at all together: then every row was checked at once."""
        return self._stored.small

    @property
    def size(self) -> int:
        """Bytes of the codes as they are stored, of all grids."""
        return self._stored.size

    @property
    def block(self) -> int:
        """Rows that lie together on the disk, and are best asked for together."""
        return self._stored.unit

    def keep_with(self, other: CodeShards) -> None:
        """Share what stays in memory with another folder, which is read in turn with this one."""
        self._stored.kept = other._stored.kept

    @property
    def codes(self) -> Tensor:
        """All codes, int64 `(n, N)`, flat as the layout orders them."""
        return self[:]

    @property
    def labels(self) -> Tensor:
        """int64 `(n,)`, -1 where there is no class."""
        return self.labels_of(np.arange(len(self)))

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Names of the columns of classes, as the data name them; `labels` are those of the first."""
        first = self.info["data"]["label_column"] or "label"
        return (first, *(name for name in self.info["class_names"] if name != first))

    def classes(self, column: str | None = None) -> Classes:
        """All classes of a column, unset the first. Raises `ValueError` where there is none of that name."""
        return Classes(self.labels_of(np.arange(len(self)), column).numpy(), self.class_names(column))

    def class_names(self, column: str | None = None) -> tuple[str, ...] | None:
        """Names of the classes of a column, None where they are numbers alone. Raises as `classes`."""
        if self._class_column(column) == "label":
            return self.label_names
        names = self.info["class_names"][column]
        return None if names is None else tuple(names)

    def labels_of(self, rows: np.ndarray, column: str | None = None) -> Tensor:
        """The classes of m rows, int64 `(m,)`, of the first column or another, without those of the other rows."""
        name = self._class_column(column)
        found = self._stored.gather(name, row_numbers(rows, len(self)))
        if name in self._numbers:
            found = np.where(found >= 0, self._numbers[name][found], -1)
        return torch.from_numpy(found)

    def labels_info(self, column: str | None = None) -> LabelsInfo:
        """How many rows have no class in a column, and the highest class: known, or counted by reading them once."""
        name = self._class_column(column)
        if name not in self._labels_info:
            known = None if name in self._numbers else (self.info["labels"] or {}).get(name)
            self._labels_info[name] = self._counted(name) if known is None else LabelsInfo(**known)
        return self._labels_info[name]

    def _counted(self, name: str) -> LabelsInfo:
        bare, highest = 0, -1
        for labels in self._stored.scan(name):
            mapped = np.where(labels >= 0, self._numbers[name][labels], -1) if name in self._numbers else labels
            bare, highest = bare + int((mapped < 0).sum()), max(highest, int(mapped.max(initial=-1)))
        return LabelsInfo(bare=bare, highest=highest)

    def _class_column(self, column: str | None) -> str:
        """The shards' column of these classes."""
        if column is None or column == self.label_columns[0]:
            return "label"
        if column in self.info["class_names"]:
            return class_column(column)
        raise ValueError(
            f"{self.folder} holds no classes '{column}'{nearest(column, self.label_columns)}; `tvq encode` keeps those "
            f"that are asked for: --class-column {column}"
        )

    @property
    def keys(self) -> list[str]:
        """Names of the images, each as often as it has views."""
        return self.keys_of(np.arange(len(self)))

    def keys_of(self, rows: np.ndarray) -> list[str]:
        """`keys` of m rows, int64 `(m,)`, without those of the others."""
        return self._stored.gather("key", row_numbers(rows, len(self))).to_pylist()

    @property
    def names(self) -> list[str]:
        """Names of the rows: the images', and behind it the number of the view where there are several."""
        return self.names_of(np.arange(len(self)))

    def names_of(self, rows: np.ndarray) -> list[str]:
        """`names` of m rows, int64 `(m,)`, without those of the others."""
        views, keys = VIEWS[self.info["views"]].rows, self.keys_of(rows)
        if views == 1:
            return keys
        return [f"{Path(key).with_suffix('')}-view{row % views}" for row, key in zip(rows, keys, strict=True)]

    @property
    def captions(self) -> list[tuple[str, ...]] | None:
        """All captions of every row's image, none of some perhaps; None where the images have no captions."""
        return self.captions_of(np.arange(len(self)))

    @property
    def has_captions(self) -> bool:
        """Whether the images have captions: as `codes.json` says, or the first shard of a folder of before."""
        return self.info["captions"] or (
            len(self._stored.rows) > 0 and self._stored.open(0).columns.get_field_index("captions") >= 0
        )

    def captions_of(self, rows: np.ndarray) -> list[tuple[str, ...]] | None:
        """`captions` of m rows, int64 `(m,)`, without those of the others."""
        if not self.has_captions:
            return None
        found = self._stored.gather("captions", row_numbers(rows, len(self)))
        texts = [None] * len(rows) if found is None else found.to_pylist()
        return [tuple(captions or ()) for captions in texts]

    def renumbered(self, names: Sequence[str] | None, whose: str, column: str | None = None) -> CodeShards:
        """These codes with the classes of a column, unset the first, numbered as in `names`, by their own names.

        Raises `ValueError` where a class that occurs here is not among them, or only one of the two has names.
        """
        own = self.class_names(column)
        if own == (None if names is None else tuple(names)) or self.labels_info(column).highest < 0:
            return self
        if names is None or own is None:
            bare, named = (self.folder, whose) if own is None else (whose, self.folder)
            raise ValueError(
                f"{named} names its classes and {bare} only numbers them, so that they cannot be compared: encode both "
                "from data with names of classes"
            )
        numbers = {name: number for number, name in enumerate(names)}
        mapped = np.array([numbers.get(name, -1) for name in own], dtype=np.int64)
        here = self._occurring(column) if (mapped < 0).any() else np.arange(0)
        if missing := [own[number] for number in here if mapped[number] < 0]:
            first = f"{column or 'class'} '{one_line(missing[0])}'"
            raise ValueError(
                f"{self.folder} holds images of {first}, which {whose} does not have"
                + (f", nor {len(missing) - 1} others" if len(missing) > 1 else "")
            )
        return self._relabelled(mapped, tuple(names), column)

    def _occurring(self, column: str | None) -> np.ndarray:
        """The classes that some row has, rising, as they are numbered here."""
        name = self._class_column(column)
        found = np.arange(0)
        for labels in self._stored.scan(name):
            found = np.union1d(found, labels[labels >= 0])
        return found if name not in self._numbers else np.unique(self._numbers[name][found])

    def _relabelled(self, mapped: np.ndarray, names: tuple[str, ...], column: str | None) -> CodeShards:
        name, info = self._class_column(column), dict(self.info)
        if name == "label":
            info["label_names"] = names
        else:
            info["class_names"] = {**self.info["class_names"], column: names}
        found, before = copy.copy(self), self._numbers.get(name)
        found._labels_info = {column: info for column, info in self._labels_info.items() if column != name}
        found._numbers = {
            **self._numbers,
            name: mapped if before is None else np.where(before >= 0, mapped[before], -1),
        }
        found.info, found.label_names = info, info["label_names"]
        return found

    def part(self, grids: Sequence[int]) -> CodeShards:
        """These rows with the codes of some grids alone, by their numbers. Raises `ValueError` as `CodeLayout.part`."""
        found = copy.copy(self)
        found.layout, found.whole = self.layout.part(grids), self
        found.array = Columns(self.array, np.array(self.layout.places_of(grids)))
        return found


def read_codes(folder: Path | str, fingerprint: str | None = None) -> CodeShards:
    """The codes that `write_codes` left in a folder; `fingerprint` is the tokenizer's that they must be of.

    A folder of more codes than stay in memory is opened without reading them; each row is checked when it is read.

    Raises `FileNotFoundError` for no such folder; `ValueError` for codes of another tokenizer or of several, for
    missing shards, and, naming file and column, for files that cannot be what `write_codes` wrote.
    """
    folder = Path(folder)
    info = read_info(folder)
    if fingerprint not in (None, info.fingerprint):
        raise ValueError(
            f"{folder} holds codes of another tokenizer: their fingerprint is {short(info.fingerprint)}, "
            f"the tokenizer's is {short(fingerprint)}"
        )
    names = _names(folder, info)
    rows = info.rows
    if rows is None:
        rows = tuple(count_rows(folder / name) for name in names)
    elif len(rows) != info.shards:
        raise DamagedCodes(folder / INFO, f"says the rows of {len(rows)} shards, where there are {info.shards}")
    if info.images is not None and sum(rows) != info.images * VIEWS[info.views].rows:
        raise DamagedCodes(folder / INFO, f"says {info.images} images, but the shards hold {sum(rows)} rows")
    stored = Stored(folder, info, rows)
    if stored.small:
        stored.check()
    return CodeShards(folder, info, stored)


def _names(folder: Path, info: CodesInfo) -> list[str]:
    """File names of the shards, all there and nothing else."""
    names = [shard_name(part, info.shards) for part in range(info.shards)]
    there = {name for name in _files(folder) if name.endswith(".parquet")}
    missing = [name for name in names if name not in there]
    if missing:
        raise ValueError(
            f"{folder} is not complete: {len(missing)} of {len(names)} shards are missing, first {missing[0]}; "
            "run the same `tvq encode` again"
        )
    extra = sorted(name for name in there - set(names) if not name.startswith("."))
    if extra:
        raise ValueError(f"{folder} holds a file that is not of these codes, {extra[0]}: move it away")
    return names


def _files(folder: Path) -> Iterator[str]:
    """Names of the files of a folder, in one pass over it."""
    with os.scandir(folder) as entries:
        yield from (entry.name for entry in entries if entry.is_file())
