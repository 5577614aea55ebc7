"""Folders of codes, read: rows found by shard and place in it, names and classes beside them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.config import nearest
from tokenizers_vq.data.shards.files import ShardFile, shard_name
from tokenizers_vq.data.shards.info import INFO, CodesInfo, DamagedCodes, one_line, read_info, short, unlike
from tokenizers_vq.data.transforms import VIEWS


class Rows:
    """`(n, N)` codes in their stored, small dtype, an array a shard, indexed as one NumPy array is by rows."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        """`parts`: at least one `(n_i, N)`, all of one dtype; memory-mapped ones are read where they are asked for."""
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self.dtype = parts[0].dtype
        self.shape = (int(self._starts[-1]), parts[0].shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """`(N,)` of a number, `(m, N)` of a slice, of m numbers or of a mask. Raises `IndexError` beyond the rows."""
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            return self._gather(np.arange(first, last, step))
        numbers = np.asarray(index)
        if numbers.dtype == bool:
            if numbers.shape != (len(self),):
                raise IndexError(f"a mask over {len(self)} rows has one value a row, got {numbers.shape}")
            numbers = numbers.nonzero()[0]
        if numbers.size and numbers.dtype.kind not in "iu":
            raise IndexError(f"rows are found by whole numbers, got {numbers.dtype}")
        numbers = numbers.astype(np.int64)
        if numbers.size and not -len(self) <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(f"{len(self)} rows have no row {numbers.max() if numbers.max() >= 0 else numbers.min()}")
        numbers = np.where(numbers < 0, numbers + len(self), numbers)
        return self._gather(numbers.reshape(-1)).reshape(*numbers.shape, self.shape[1])

    def _gather(self, numbers: np.ndarray) -> np.ndarray:
        out = np.empty((len(numbers), self.shape[1]), self.dtype)
        owners = np.searchsorted(self._starts, numbers, side="right") - 1
        for owner in np.unique(owners):
            mine = owners == owner
            out[mine] = self._parts[owner][numbers[mine] - self._starts[owner]]
        return out


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

    Codes stay in their stored, small dtype, one copy of them, in `array`; `codes` converts all of them.
    """

    def __init__(
        self,
        folder: Path,
        info: CodesInfo,
        array: Rows,
        keys: Any,
        labels: np.ndarray,
        captions: Any,
        further: Mapping[str, np.ndarray],
    ) -> None:
        self.folder, self.array, self._keys, self._labels, self._captions = folder, array, keys, labels, captions
        self._further = further
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
    def codes(self) -> Tensor:
        """All codes, int64 `(n, N)`, flat as the layout orders them."""
        return self[:]

    @property
    def labels(self) -> Tensor:
        """int64 `(n,)`, -1 where there is no class."""
        return torch.from_numpy(self._labels.copy())

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Names of the columns of classes, as the data name them; `labels` are those of the first."""
        first = self.info["data"]["label_column"] or "label"
        return (first, *(name for name in self._further if name != first))

    def classes(self, column: str | None = None) -> Classes:
        """The classes of a column, unset the first. Raises `ValueError` where there is none of that name."""
        if column is None or column == self.label_columns[0]:
            return Classes(self._labels, self.label_names)
        if column in self._further:
            names = self.info["class_names"][column]
            return Classes(self._further[column], None if names is None else tuple(names))
        raise ValueError(
            f"{self.folder} holds no classes '{column}'{nearest(column, self.label_columns)}; `tvq encode` keeps those "
            f"that are asked for: --class-column {column}"
        )

    def labels_of(self, rows: np.ndarray, column: str | None = None) -> Tensor:
        """The classes of m rows, int64 `(m,)`, of the first column or another, without those of the other rows."""
        return torch.from_numpy(self.classes(column).labels[rows])

    @property
    def keys(self) -> list[str]:
        """Names of the images, each as often as it has views."""
        return self._keys.to_pylist()

    def keys_of(self, rows: np.ndarray) -> list[str]:
        """`keys` of m rows, int64 `(m,)`, without those of the others."""
        return self._keys.take(rows).to_pylist()

    @property
    def names(self) -> list[str]:
        """Names of the rows: the images', and behind it the number of the view where there are several."""
        views = VIEWS[self.info["views"]].rows
        if views == 1:
            return self.keys
        return [f"{Path(key).with_suffix('')}-view{row % views}" for row, key in enumerate(self.keys)]

    @property
    def captions(self) -> list[tuple[str, ...]] | None:
        """All captions of every row's image, none of some perhaps; None where the images have no captions."""
        return self.captions_of(np.arange(len(self)))

    def captions_of(self, rows: np.ndarray) -> list[tuple[str, ...]] | None:
        """`captions` of m rows, int64 `(m,)`, without those of the others."""
        if self._captions is None:
            return None
        return [tuple(captions or ()) for captions in self._captions.take(rows).to_pylist()]

    def renumbered(self, names: Sequence[str] | None, whose: str, column: str | None = None) -> CodeShards:
        """These codes with the classes of a column, unset the first, numbered as in `names`, by their own names.

        Raises `ValueError` where a class that occurs here is not among them, or only one of the two has names.
        """
        labels, own = self.classes(column)
        if own == (None if names is None else tuple(names)) or not (labels >= 0).any():
            return self
        if names is None or own is None:
            bare, named = (self.folder, whose) if own is None else (whose, self.folder)
            raise ValueError(
                f"{named} names its classes and {bare} only numbers them, so that they cannot be compared: encode both "
                "from data with names of classes"
            )
        numbers = {name: number for number, name in enumerate(names)}
        mapped = np.array([numbers.get(name, -1) for name in own], dtype=np.int64)
        here = np.unique(labels[labels >= 0])
        if missing := [own[number] for number in here if mapped[number] < 0]:
            first = f"{column or 'class'} '{one_line(missing[0])}'"
            raise ValueError(
                f"{self.folder} holds images of {first}, which {whose} does not have"
                + (f", nor {len(missing) - 1} others" if len(missing) > 1 else "")
            )
        return self._relabelled(np.where(labels >= 0, mapped[labels], -1), tuple(names), column)

    def _relabelled(self, labels: np.ndarray, names: tuple[str, ...], column: str | None) -> CodeShards:
        first, further, info = self._labels, dict(self._further), dict(self.info)
        if column is None or column == self.label_columns[0]:
            first, info["label_names"] = labels, names
        else:
            further[column], info["class_names"] = labels, {**self.info["class_names"], column: names}
        found = copy.copy(self)
        found._labels, found._further, found.info, found.label_names = first, further, info, info["label_names"]
        return found

    def part(self, grids: Sequence[int]) -> CodeShards:
        """These rows with the codes of some grids alone, by their numbers. Raises `ValueError` as `CodeLayout.part`."""
        found = copy.copy(self)
        found.layout, found.whole = self.layout.part(grids), self
        found.array = Columns(self.array, np.array(self.layout.places_of(grids)))
        return found


def read_codes(folder: Path | str, fingerprint: str | None = None) -> CodeShards:
    """The codes that `write_codes` left in a folder; `fingerprint` is the tokenizer's that they must be of.

    Raises `FileNotFoundError` for no such folder; `ValueError` for codes of another tokenizer or of several, for
    missing shards, and, naming file and column, for files that cannot be what `write_codes` wrote.
    """
    import pyarrow as pa

    folder = Path(folder)
    info = read_info(folder)
    if fingerprint not in (None, info.fingerprint):
        raise ValueError(
            f"{folder} holds codes of another tokenizer: their fingerprint is {short(info.fingerprint)}, "
            f"the tokenizer's is {short(fingerprint)}"
        )
    parts, keys, labels, captions = [], [], [], []
    further: dict[str, list[np.ndarray]] = {name: [] for name in info.class_names}
    first: tuple[str, dict[str, Any]] | None = None
    for name in _names(folder, info):
        with ShardFile(folder / name, info) as shard:
            if shard.how is not None:
                first = first or (name, shard.how)
                _refuse_mixture(shard.path, shard.how, *first)
            shard.check_views()
            parts.append(shard.codes())
            keys += shard.keys().chunks
            labels.append(shard.labels())
            captions.append(shard.captions())
            for column, found in further.items():
                found.append(shard.labels(column))
    array = Rows(parts)
    if info.images is not None and len(array) != info.images * VIEWS[info.views].rows:
        raise DamagedCodes(folder / INFO, f"says {info.images} images, but the shards hold {len(array)} rows")
    texts = pa.chunked_array(keys, pa.dictionary(pa.int32(), pa.string()))
    classes = {column: np.concatenate(found) for column, found in further.items()}
    return CodeShards(folder, info, array, texts, np.concatenate(labels), _joined(captions, parts), classes)


def _names(folder: Path, info: CodesInfo) -> list[str]:
    """File names of the shards, all there and nothing else."""
    names = [shard_name(part, info.shards) for part in range(info.shards)]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} is not complete: {len(missing)} of {len(names)} shards are missing, first {missing[0]}; "
            "run the same `tvq encode` again"
        )
    extra = sorted({path.name for path in folder.glob("*.parquet")} - set(names))
    if extra:
        raise ValueError(f"{folder} holds a file that is not of these codes, {extra[0]}: move it away")
    return names


def _refuse_mixture(path: Path, how: dict[str, Any], other: str, others: dict[str, Any]) -> None:
    """A shard of another folder may lie here: its classes, say, are numbered otherwise."""
    for name in [*others, *(name for name in how if name not in others)]:
        if name != "data" and unlike(how.get(name), others.get(name)):
            made = one_line(f"was made with {name} = {how.get(name)}, {other} with {others.get(name)}")
            raise ValueError(f"{path} {made}: move it away, then run `tvq encode` again")


def _joined(columns: list[Any], parts: list[np.ndarray]) -> Any:
    """Captions of all shards, null in those without; None where no shard has any."""
    import pyarrow as pa

    if all(column is None for column in columns):
        return None
    kind = pa.list_(pa.string())
    chunks: list[Any] = []
    for column, part in zip(columns, parts, strict=True):
        chunks += [pa.nulls(len(part), kind)] if column is None else column.chunks
    return pa.chunked_array(chunks, kind)
