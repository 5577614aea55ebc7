"""Rows of a folder of codes where they lie: found by shard and place in it, unpacked when they are asked for.

What was read last stays in memory, within a bound that does not grow with the folder.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.data.shards.files import ShardFile, class_column, code_dtype, rows_within, shard_name
from tokenizers_vq.data.shards.info import INFO, CodesInfo, DamagedCodes, one_line, unlike

UNIT = 2**18
"""bytes of the codes that are unpacked and kept together"""
KEPT = 2**25
"""bytes of a folder that stay in memory"""
SMALL = 2**17
"""rows whose names are looked at all together"""
_OPEN = 16
_TOGETHER = 16


class Kept:
    """What was unpacked last, within `KEPT` bytes; folders that are read together share one."""

    def __init__(self) -> None:
        self._units: OrderedDict[tuple[int, str, int, int], Any] = OrderedDict()
        self._bytes = 0

    def __contains__(self, key: tuple[int, str, int, int]) -> bool:
        return key in self._units

    def put(self, key: tuple[int, str, int, int], unit: Any) -> None:
        """Keep a unit of a column."""
        if key in self._units:
            self._bytes -= _size(self._units[key])
        self._units[key] = unit
        self._bytes += _size(unit)

    def take(self, key: tuple[int, str, int, int]) -> Any:
        """A unit that is there, which stays longest now."""
        self._units.move_to_end(key)
        return self._units[key]

    def shrink(self) -> None:
        """Let go of what was asked for least lately, down to the bound."""
        while self._bytes > KEPT and len(self._units) > 1:
            self._bytes -= _size(self._units.popitem(last=False)[1])


class Stored:
    """The shards of one folder, their rows numbered one shard behind the other.

    Columns are `codes`, `key`, `label`, `class.NAME` and `captions`.
    """

    def __init__(self, folder: Path, info: CodesInfo, rows: Sequence[int]) -> None:
        """`rows`: of each shard."""
        self.folder, self.info, self.layout = folder, info, CodeLayout.from_dict(info.layout)
        self.rows = tuple(rows)
        self.starts = np.cumsum([0, *self.rows], dtype=np.int64)
        self.dtype = np.dtype(code_dtype(self.layout))
        self.unit = rows_within(self.layout, UNIT)
        self._files: OrderedDict[int, ShardFile] = OrderedDict()
        self.kept = Kept()
        self._first: tuple[Path, dict[str, Any]] | None = None

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def size(self) -> int:
        """Bytes of the codes."""
        return len(self) * self.layout.length * self.dtype.itemsize

    @property
    def small(self) -> bool:
        """Whether all rows fit into what stays in memory."""
        return len(self) <= SMALL and self.size <= KEPT

    def check(self) -> None:
        """Read every column of every shard once. Raises as `ShardFile.check` and `open`."""
        for number in range(len(self.rows)):
            self.open(number).check()

    def open(self, number: int) -> ShardFile:
        """A shard; the latest few stay open.

        Raises `DamagedCodes` where it is none, or has other rows than it should, and `ValueError` where it lay in
        another folder.
        """
        if number in self._files:
            self._files.move_to_end(number)
            return self._files[number]
        shard = ShardFile(self.folder / shard_name(number, len(self.rows)), self.info)
        if shard.how is not None:
            self._first = self._first or (shard.path, shard.how)
            _refuse_mixture(shard.path, shard.how, *self._first)
        if shard.rows != self.rows[number]:
            raise DamagedCodes(shard.path, f"holds {shard.rows} rows, {INFO} says {self.rows[number]}")
        self._files[number] = shard
        if len(self._files) > _OPEN:
            self._files.popitem(last=False)[1].close()
        return shard

    def gather(self, column: str, numbers: np.ndarray) -> Any:
        """Rows of a column, by their numbers int64 `(m,)`: an array `(m, ...)`, or one of Arrow of texts or lists.

        None of captions where no shard of these rows has any. Raises as `ShardFile`, for the first damage it meets.
        """
        shards = np.searchsorted(self.starts, numbers, side="right") - 1
        places = numbers - self.starts[shards]
        within = places // self.unit
        order = np.lexsort((within, shards))
        edges = np.nonzero((np.diff(shards[order]) != 0) | (np.diff(within[order]) != 0))[0] + 1
        groups = [part for part in np.split(order, edges) if len(part)]
        wanted = [(int(shards[part[0]]), int(within[part[0]])) for part in groups]
        parts = [
            _take(unit, places[part] - place * self.unit)
            for part, (_, place), unit in zip(groups, wanted, self._read(column, wanted), strict=True)
        ]
        return _joined(parts, order, column, self)

    def scan(self, column: str) -> Iterator[np.ndarray]:
        """All labels of a column of classes, a shard at a time, keeping none."""
        for number in range(len(self.rows)):
            with ShardFile(self.folder / shard_name(number, len(self.rows)), self.info) as shard:
                yield shard.labels(_column_of(column))

    def _read(self, column: str, wanted: Sequence[tuple[int, int]]) -> Iterator[Any]:
        """Units, each by its shard and its place there, in rising order; neighbours are unpacked together."""
        at = 0
        while at < len(wanted):
            shard, first = wanted[at]
            run = 1
            while run < _TOGETHER and at + run < len(wanted) and wanted[at + run] == (shard, first + run):
                run += 1
            keys = [(id(self), column, shard, first + i) for i in range(run)]
            known = [key in self.kept for key in keys]
            if not all(known):
                low, high = known.index(False), run - known[::-1].index(False)
                for key, unit in zip(keys[low:high], self._unpack(column, shard, first + low, high - low), strict=True):
                    self.kept.put(key, unit)
            yield from [self.kept.take(key) for key in keys]
            self.kept.shrink()
            at += run

    def _unpack(self, column: str, number: int, first: int, count: int) -> list[Any]:
        shard = self.open(number)
        low, high = first * self.unit, min((first + count) * self.unit, shard.rows)
        found = _read(shard, column, (low, high))
        cuts = [(at - low, min(at + self.unit, high) - low) for at in range(low, high, self.unit)]
        return [None if found is None else _copied(found, *cut) for cut in cuts]


def _read(shard: ShardFile, column: str, span: tuple[int, int]) -> Any:
    import pyarrow as pa

    if column == "codes":
        shard.check_views(span)
        return shard.codes(span)
    if column == "key":
        return shard.keys(span).cast(pa.string()).combine_chunks()
    if column == "captions":
        found = shard.captions(span)
        return None if found is None else found.combine_chunks()
    labels, known = shard.labels(_column_of(column), span), (shard.info.labels or {}).get(column)
    if known is not None and len(labels) and (labels.max() > known.highest or (not known.bare and labels.min() < 0)):
        beyond = f"the label {labels.max()}" if labels.max() > known.highest else "rows without a label"
        raise DamagedCodes(shard.path, f"has {beyond} in '{column}', where {INFO} says that there are none")
    return labels


def _column_of(column: str) -> str | None:
    return None if column == "label" else column.removeprefix(class_column(""))


def _copied(values: Any, first: int, last: int) -> Any:
    """A part that does not hold the whole in memory."""
    if isinstance(values, np.ndarray):
        return values[first:last].copy()
    return values.take(np.arange(first, last))


def _take(unit: Any, places: np.ndarray) -> Any:
    if unit is None:
        return len(places)
    return unit[places] if isinstance(unit, np.ndarray) else unit.take(places)


def _joined(parts: Sequence[Any], order: np.ndarray, column: str, stored: Stored) -> Any:
    """Parts that hold the rows in this `order` -> rows in the order in which they were asked for."""
    import pyarrow as pa

    if column == "captions":
        if all(isinstance(part, int) for part in parts):
            return None
        kind = pa.list_(pa.string())
        parts = [pa.nulls(part, kind) if isinstance(part, int) else part for part in parts]
    if column in ("key", "captions"):
        whole = pa.concat_arrays(parts) if parts else pa.array([], pa.string())
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return whole.take(back)
    shape, kind = ((stored.layout.length,), stored.dtype) if column == "codes" else ((), np.dtype(np.int64))
    out = np.empty((len(order), *shape), kind)
    at = 0
    for part in parts:
        out[order[at : at + len(part)]] = part
        at += len(part)
    return out


def _size(unit: Any) -> int:
    return 0 if unit is None else int(unit.nbytes)


def _refuse_mixture(path: Path, how: dict[str, Any], other: Path, others: dict[str, Any]) -> None:
    """A shard of another folder may lie here: its classes, say, are numbered otherwise."""
    for name in [*others, *(name for name in how if name not in others)]:
        if name != "data" and unlike(how.get(name), others.get(name)):
            made = one_line(f"was made with {name} = {how.get(name)}, {other.name} with {others.get(name)}")
            raise ValueError(f"{path} {made}: move it away, then run `tvq encode` again")
