"""Where images come from: folders, parquet, webdataset and the Hub through `datasets`, never decoded here.

`files` and `splits` say which files are read, `columns` what a table's columns are, `tables` opens them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from tokenizers_vq.data import captions, photos, remote, splits
from tokenizers_vq.data.columns import NONE, Columns, Item
from tokenizers_vq.data.config import DataConfig
from tokenizers_vq.data.files import Found, parquet_file, readable
from tokenizers_vq.data.tables import Table, look, open_table
from tokenizers_vq.data.told import Told, captions_of, labels_of


class About(NamedTuple):
    """What was opened: a line for people, the folder that was chosen (None for the Hub), the split where there are."""

    description: str
    folder: str | None
    split: str | None


class Source(Protocol):
    """Images by index. `label_names` is None where there are no classes, or classes that are numbers only."""

    about: About
    label_names: tuple[str, ...] | None
    has_captions: bool

    @property
    def class_names(self) -> dict[str, tuple[str, ...] | None]:
        """Further columns of classes, each with its names."""

    @property
    def description(self) -> str: ...

    def __len__(self) -> int: ...

    def items(self, indices: Sequence[int]) -> list[Item]: ...

    def told(self) -> Told: ...

    def files(self) -> list[tuple[str, str]]:
        """Name and path of every file that is read, in order: what `identity.record` takes."""


class _Described:
    about: About

    @property
    def class_names(self) -> dict[str, tuple[str, ...] | None]:
        """Further columns of classes: none, unless a table has them."""
        return {}

    @property
    def description(self) -> str:
        """The line for people."""
        return self.about.description


class PhotoSource(_Described):
    """Windows of scikit-image's photographs; the class is the photograph."""

    def __init__(self, split: str) -> None:
        self.paths, self.windows = photos.windows(split)
        self.label_names: tuple[str, ...] | None = tuple(path.stem for path in self.paths)
        side = "left" if split == "train" else "right"
        self.has_captions = False
        self.about = About(
            f"{len(self.windows)} overlapping {photos.WINDOW}x{photos.WINDOW} windows of {len(self.paths)} photographs "
            f"inside the installed scikit-image (split {split}: the {side} part of each); a demonstration, no "
            "benchmark",
            None,
            split,
        )

    def __len__(self) -> int:
        return len(self.windows)

    def items(self, indices: Sequence[int]) -> list[Item]:
        result = []
        for number, top, left in (self.windows[index] for index in indices):
            pixels = photos.photograph(self.paths[number])[top : top + photos.WINDOW, left : left + photos.WINDOW]
            result.append(Item(pixels, f"{self.paths[number].stem}/{top:04d}-{left:04d}", number))
        return result

    def told(self) -> Told:
        return Told(torch.tensor([number for number, *_ in self.windows]), None)

    def files(self) -> list[tuple[str, str]]:
        return [(path.name, str(path)) for path in self.paths]


class FolderSource(_Described):
    """The pictures of one split of a folder; sub-folders are classes, numbered over all splits by name."""

    def __init__(self, found: Found, config: DataConfig, prefer: Sequence[str]) -> None:
        import pyarrow as pa

        self.sizes = found.sizes
        where = readable(config.path)
        if config.image_column not in (None, "image") or config.label_column not in (None, "label", NONE):
            name = config.label_column if config.image_column in (None, "image") else config.image_column
            raise ValueError(
                f"{where}: no column '{name}': it is a folder of images, whose sub-folders are the classes"
            )
        grouped = splits.of_pictures(found.names, config.split, where)
        split = splits.choose(grouped.parts, config.split, prefer, where)
        parts = grouped.parts[split]
        in_shards = _are_shards(found, grouped.parts)
        names = None if config.label_column == NONE or in_shards else _class_names(grouped.parts, split)
        texts = captions.read(found.root, found.metadata, config.caption_column)
        folder = _folder_of(found.root, parts, split)
        columns = {
            "path": pa.array([os.fsencode(part.name) for part in parts], pa.binary()),
            "key": pa.array([readable(part.name) for part in parts], pa.string()),
        }
        if names is not None:
            numbers = {name: number for number, name in enumerate(names)}
            columns["label"] = pa.array([numbers.get(part.classes[0], -1) for part in parts], pa.int64())
        if texts is not None:
            if not any(name in texts for name in found.names):
                raise ValueError(f"{where}: none of the pictures is named in {readable(found.metadata[0])}")
            if config.caption_column is None and not any(part.name in texts for part in parts):
                texts = None  # they are of another split
        if texts is not None:
            columns["captions"] = pa.array([texts.get(part.name, ()) for part in parts], pa.list_(pa.string()))
        self.root, self.inside, self.table = (
            str(found.root),
            os.path.relpath(str(folder), str(found.root)),
            pa.table(columns),
        )
        self.label_names = None if names is None else tuple(readable(name) for name in names)
        self.further = {name: captions.classes(found.root, found.metadata, name) for name in config.class_columns}
        self.has_captions = texts is not None
        said = _words(found.left_out, len(grouped.beside), names, parts)
        said += "; no classes, for the folders are img2dataset's shards" if in_shards else ""
        if found.metadata and texts is None:
            said += f"; no captions of {readable(found.metadata[0])}"
        of_split = "" if split is None else f", split {split}"
        chosen = readable(str(folder.absolute()))
        self.about = About(f"{len(parts)} images in {readable(str(folder))}{of_split}{said}", chosen, split)

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def class_names(self) -> dict[str, tuple[str, ...] | None]:
        """Columns of classes of `metadata.csv`, each with its names."""
        return {column: one.names for column, one in self.further.items()}

    def items(self, indices: Sequence[int]) -> list[Item]:
        rows = self.table.take(list(indices)).to_pylist()
        names = [os.fsdecode(row["path"]) for row in rows]
        images: Iterable[Any] = (os.path.join(self.root, name) for name in names)  # noqa: PTH118 (speed)
        if self.sizes is not None:
            images = remote.fetch(self.root, names, [self.sizes[name] for name in names])
        return [
            Item(
                image,
                row["key"],
                row.get("label", -1),
                tuple(row.get("captions", ())),
                tuple(one.numbers.get(os.fsdecode(row["path"]), -1) for one in self.further.values()),
            )
            for row, image in zip(rows, images, strict=True)
        ]

    def told(self) -> Told:
        labels = torch.full((len(self),), -1)
        if self.label_names is not None:
            labels = torch.tensor(self.table["label"].to_numpy())
        return Told(labels, captions_of(self.table["captions"]) if self.has_captions else None)

    def files(self) -> list[tuple[str, str]]:
        names = [os.fsdecode(name) for name in self.table["path"].to_pylist()]
        cut = 0 if self.inside == "." else len(self.inside) + 1
        if self.sizes is not None:  # what is known of a file at a URL stands in its name
            return [(f"{name[cut:]}, {self.sizes[name]} bytes", "") for name in names]
        return [(name[cut:], os.path.join(self.root, name)) for name in names]  # noqa: PTH118 (speed)


def _class_names(parts: dict[str | None, list[splits.Part]], split: str | None) -> list[str] | None:
    """Classes of all splits by name, None where the pictures of `split` are not all in folders of classes.

    One folder alone is a class only where another split has it among several.
    """
    held = {
        name: {part.classes[0] for part in group}
        for name, group in parts.items()
        if all(part.classes for part in group)
    }
    names = sorted(set().union(*(classes for classes in held.values() if len(classes) > 1)))
    return names if names and held.get(split, set()) and held[split] <= set(names) else None


def _are_shards(found: Found, parts: dict[str | None, list[splits.Part]]) -> bool:
    """Whether the folders are numbered parts with a file of statistics beside each, as img2dataset writes them."""
    folders = {part.name.rpartition("/")[0] for group in parts.values() for part in group}
    numbered = all(re.fullmatch(r"\d+", folder.rpartition("/")[2]) for folder in folders)
    return numbered and all((found.root / f"{folder}_stats.json").is_file() for folder in folders)


def _folder_of(root: Any, parts: Sequence[splits.Part], split: str | None) -> Any:
    """The folder `split` where all its pictures lie in one of that name, else `root`."""
    folders = parts[0].name.split("/")[:-1]
    inside = "/".join(folders[: folders.index(split) + 1]) if split in folders else ""
    return root / inside if inside and all(part.name.startswith(f"{inside}/") for part in parts) else root


def _words(left_out: str, beside: int, names: Sequence[str] | None, parts: Sequence[splits.Part]) -> str:
    """Classes and what was not read, as a description ends."""
    words = [] if names is None else [f"{len(names)} classes"]
    loose = sum(not part.classes for part in parts)
    if names is None and 0 < loose < len(parts):
        words.append(f"no classes, for {loose} of them lie in no sub-folder")
    words += [left_out] if left_out else []
    words += [f"left out: {beside} images of no split"] if beside else []
    return "".join(f"; {word}" for word in words)


class TableSource(_Described):
    """A `datasets.Dataset` with its images left undecoded."""

    def __init__(self, table: Table) -> None:
        self.columns, self.dataset, columns = table.columns, table.dataset, table.columns
        self._files = table.files
        for one in (columns, *columns.further.values()):
            if one.label is None:
                continue
            labels = self.dataset.select_columns([one.label]).with_format("arrow")[:][one.label]
            if (bad := one.first_bad_label(labels)) is not None:
                raise ValueError(one.bad_label(labels[bad].as_py(), self._row(bad)))
            if one.label_is_text:
                one.number_texts([*labels.unique().to_pylist(), *table.classes(one)])
            elif one.label_names is not None:
                one.number_as_in_all_splits(table.classes(one))
        columns.use_path = columns.key is None and _distinct_paths(self.dataset, columns.image)
        self.label_names, self.has_captions = columns.label_names, columns.captions is not None
        self.about = about(table, len(self.dataset))

    @property
    def class_names(self) -> dict[str, tuple[str, ...] | None]:
        """Those of the table."""
        return self.columns.class_names

    def _row(self, index: int) -> str:
        """Where a row stands: its key, or its file and its number there."""
        if self.columns.key is not None:
            return f"{self.dataset[index][self.columns.key]} (row {index})"
        if len(self._files) > 1 and all(path.endswith(".parquet") for _, path in self._files):
            for name, path in self._files:
                with parquet_file(path) as file:
                    rows = file.metadata.num_rows
                if index < rows:
                    return f"{readable(name)}, row {index}"
                index -= rows
        return f"row {index}"

    def __len__(self) -> int:
        return len(self.dataset)

    def items(self, indices: Sequence[int]) -> list[Item]:
        table = self.dataset[list(indices)]
        rows = ({name: column[i] for name, column in table.items()} for i in range(len(indices)))
        return [self.columns.item(row, index) for row, index in zip(rows, indices, strict=True)]

    def told(self) -> Told:
        label, captions = (
            None if name is None else self.dataset.select_columns([name]).with_format("arrow")[:][name]
            for name in (self.columns.label, self.columns.captions)
        )
        labels = torch.full((len(self),), -1) if label is None else labels_of(label, self.columns)
        return Told(labels, None if captions is None else captions_of(captions))

    def files(self) -> list[tuple[str, str]]:
        return self._files


class Chosen(_Described):
    """Items of a source by their `numbers` there, in that order."""

    def __init__(self, source: Source, numbers: Sequence[int] | np.ndarray) -> None:
        self.source, self.numbers, self.label_names = source, np.asarray(numbers), source.label_names
        self.has_captions = source.has_captions
        self.about = source.about._replace(description=f"{len(self.numbers)} of {source.description}")

    @property
    def class_names(self) -> dict[str, tuple[str, ...] | None]:
        """Those of the source."""
        return self.source.class_names

    def __len__(self) -> int:
        return len(self.numbers)

    def items(self, indices: Sequence[int]) -> list[Item]:
        return self.source.items(self.numbers[list(indices)].tolist())

    def told(self) -> Told:
        labels, texts = self.source.told()
        places = self.numbers.tolist()
        return Told(labels[places], None if texts is None else [texts[place] for place in places])

    def files(self) -> list[tuple[str, str]]:
        return self.source.files()


class Stream(NamedTuple):
    """An undecoded `datasets.IterableDataset`, what its columns are, and what is known of it."""

    dataset: Any
    columns: Columns
    about: About
    files: list[tuple[str, str]]


def about(table: Table, count: int | None) -> About:
    """What was opened, `count` images of it (None for a stream, which nobody counts)."""
    images = "images" if count is None else f"{count} images"
    names = table.columns.label_names
    classes = f"; {len(names)} classes" if names else ""
    left_out = f"; {table.left_out}" if table.left_out else ""
    return About(f"{images} of {table.where}, split {table.split}{classes}{left_out}", table.folder, table.split)


def _distinct_paths(dataset: Any, column: str) -> bool:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = dataset.data.schema.field(column).type
    if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
        return False
    paths = pc.struct_field(dataset.data[column], "path")
    return paths.null_count == 0 and len(pc.unique(paths)) == len(paths)


def open_source(config: DataConfig, prefer: Sequence[str] = ("train",)) -> Source:
    """The images that `config` names. `prefer`: which split to take where there are several and none is set.

    Raises `FileNotFoundError` for a missing path, `ValueError` for a missing split or column, a label that is no class,
    and wherever files, splits or columns could be meant in several ways, each in one line.
    """
    source: Source
    found = None if config.path == "skimage" or config.streaming else look(config)
    if config.class_columns and (config.path == "skimage" or (found is not None and found.kind == "tar")):
        raise ValueError(
            f"{readable(config.path)}: class_columns are of tables (parquet, the Hub, metadata.csv of a folder), which "
            "this is not"
        )
    if config.streaming:
        raise ValueError(f"{config.path}: streaming data has no index; set streaming=false here")
    if config.path == "skimage":
        source = PhotoSource(str(splits.choose(("train", "test"), config.split, prefer, config.path)))
    elif found is not None and found.kind == "pictures":
        source = FolderSource(found, config, prefer)
    else:
        source = TableSource(open_table(config, prefer, found, streaming=False))
    if not len(source):
        raise ValueError(f"{readable(config.path)}: holds no images")
    if config.limit is None:
        return source
    count = min(config.limit, len(source))
    # Evenly spread, in order: the first ones would be the first classes only.
    return Chosen(source, np.arange(count) * len(source) // count)


def open_stream(config: DataConfig, prefer: Sequence[str] = ("train",)) -> Stream:
    """The images that `config` names as they come. Raises as `open_source` does, and for classes that are text."""
    found = look(config)
    where = readable(config.path)
    if config.path == "skimage" or (found is not None and found.kind == "pictures"):
        raise ValueError(f"{where}: images of a folder are read by index; set streaming=false")
    table = open_table(config, prefer, found, streaming=True)
    columns = table.columns
    if texts := [one.label for one in (columns, *columns.further.values()) if one.label_is_text]:
        raise ValueError(
            f"{where}: column '{texts[0]}' holds classes as text, which a stream cannot number; set "
            "streaming=false, or label_column to a column of whole numbers, or to none"
        )
    for one in (columns, *columns.further.values()):
        one.number_as_in_all_splits(table.classes(one) if one.label_names else ())
    return Stream(table.dataset, table.columns, about(table, None), table.files)
