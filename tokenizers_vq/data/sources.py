"""Where images come from: folders, parquet, webdataset and the Hub through `datasets`, never decoded here.

`files` and `splits` say which files are read, `columns` what a table's columns are, `tables` opens them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import field_validator, model_validator
from typing_extensions import Self

from tokenizers_vq.config import Config, ConfigError
from tokenizers_vq.data import captions, photos, splits
from tokenizers_vq.data.columns import NONE, Columns, Item
from tokenizers_vq.data.files import Found, parquet_file, readable
from tokenizers_vq.data.tables import Table, look, open_table


class DataConfig(Config):
    """What images to read, and how a training view is cut from them."""

    path: str
    """folder of images, parquet or webdataset files (folder, file or glob), Hub name, or skimage (its photographs)"""
    split: str | None = None
    """name of the split; unset: the only one, else train in training and test in evaluation; all: everything"""
    streaming: bool = False
    """read parquet, webdataset or Hub data as it comes, shuffled in a buffer, without storing it"""
    image_column: str | None = None
    """column of the images; unset: the one that holds images, `image` where several do"""
    range: tuple[float, float] | None = None
    """values of black and white in .npy arrays and 16-bit files; unset: all of uint8 and uint16, [0, 1] of floats"""
    label_column: str | None = None
    """column of the classes; unset: the one that holds classes, or a folder's sub-folders; none: no classes"""
    caption_column: str | None = None
    """column of the captions; unset: caption, captions or text where it holds text; none: no captions"""
    crop: Literal["random_resized", "random", "center"] = "random_resized"
    """training view: a window of random size and place, of random place, or the centre"""
    scale: tuple[float, float] = (0.5, 1.0)
    """share of the image's area in a random_resized window"""
    ratio: tuple[float, float] = (0.75, 4 / 3)
    """aspect ratio of a random_resized window, relative to the output's"""
    flip: bool = True
    """mirror every other training view"""
    workers: int = 2
    """loader processes; 0 loads in the main process"""
    on_broken: Literal["skip", "stop"] = "skip"
    """an unreadable image: skip it and name it, or stop the run"""
    limit: int | None = None
    """use this many images, evenly spread over the data (streaming: the first)"""
    shuffle_buffer: int = 1000
    """streaming: images among which the next is drawn"""

    @field_validator("path", mode="before")
    @classmethod
    def _path_to_text(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(("scale",), f"needs two rising shares within (0, 1], got {list(self.scale)}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(("ratio",), f"needs two rising positive ratios, got {list(self.ratio)}")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ConfigError(("range",), f"needs black below white, got {list(self.range)}")
        if self.workers < 0:
            raise ConfigError(("workers",), f"must be 0 or more, got {self.workers}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(("limit",), f"must be 1 or more, got {self.limit}")
        if self.shuffle_buffer < 1:
            raise ConfigError(("shuffle_buffer",), f"must be 1 or more, got {self.shuffle_buffer}")
        return self


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
    def description(self) -> str: ...

    def __len__(self) -> int: ...

    def items(self, indices: Sequence[int]) -> list[Item]: ...

    def files(self) -> list[tuple[str, str]]:
        """Name and path of every file that is read, in order: what `identity.record` takes."""


class _Described:
    about: About

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

    def files(self) -> list[tuple[str, str]]:
        return [(path.name, str(path)) for path in self.paths]


class FolderSource(_Described):
    """The pictures of one split of a folder; sub-folders are classes, numbered over all splits by name."""

    def __init__(self, found: Found, config: DataConfig, prefer: Sequence[str]) -> None:
        import pyarrow as pa

        where = readable(config.path)
        if config.image_column is not None or config.label_column not in (None, NONE):
            name = config.image_column or config.label_column
            raise ValueError(
                f"{where}: no column '{name}': it is a folder of images, whose sub-folders are the classes"
            )
        grouped = splits.of_pictures(found.names, config.split, where)
        split = splits.choose(grouped.parts, config.split, prefer, where)
        parts = grouped.parts[split]
        names = None if config.label_column == NONE else _class_names(grouped.parts, split)
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
            columns["captions"] = pa.array([texts.get(part.name, ()) for part in parts], pa.list_(pa.string()))
            if not any(part.name in texts for part in parts):
                raise ValueError(f"{where}: none of the pictures is named in {found.metadata[0]}")
        self.root, self.inside, self.table = str(found.root), os.path.relpath(folder, found.root), pa.table(columns)
        self.label_names = None if names is None else tuple(readable(name) for name in names)
        self.has_captions = texts is not None
        said = _words(found.left_out, len(grouped.beside), names, parts)
        of_split = "" if split is None else f", split {split}"
        self.about = About(f"{len(parts)} images in {readable(str(folder))}{of_split}{said}", str(folder), split)

    def __len__(self) -> int:
        return self.table.num_rows

    def items(self, indices: Sequence[int]) -> list[Item]:
        rows = self.table.take(list(indices)).to_pylist()
        return [
            Item(
                os.path.join(self.root, os.fsdecode(row["path"])),  # noqa: PTH118 (speed)
                row["key"],
                row.get("label", -1),
                tuple(row.get("captions", ())),
            )
            for row in rows
        ]

    def files(self) -> list[tuple[str, str]]:
        names = [os.fsdecode(name) for name in self.table["path"].to_pylist()]
        cut = 0 if self.inside == "." else len(self.inside) + 1
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


def _folder_of(root: Path, parts: Sequence[splits.Part], split: str | None) -> Path:
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
        if columns.label is not None:
            labels = self.dataset.select_columns([columns.label]).with_format("arrow")[:][columns.label]
            if (bad := columns.first_bad_label(labels)) is not None:
                raise ValueError(columns.bad_label(labels[bad].as_py(), self._row(bad)))
            if columns.label_is_text:
                columns.number_texts([*labels.unique().to_pylist(), *table.classes()])
        columns.use_path = columns.key is None and _distinct_paths(self.dataset, columns.image)
        self.label_names, self.has_captions = columns.label_names, columns.captions is not None
        self.about = about(table, len(self.dataset))

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

    def files(self) -> list[tuple[str, str]]:
        return self._files


class Spread(_Described):
    """`count` items of a source, evenly spread, in order: the first `count` would be the first classes only."""

    def __init__(self, source: Source, count: int) -> None:
        self.source, self.count, self.label_names = source, min(count, len(source)), source.label_names
        self.has_captions = source.has_captions
        self.about = source.about._replace(description=f"{self.count} of {source.description}")

    def __len__(self) -> int:
        return self.count

    def items(self, indices: Sequence[int]) -> list[Item]:
        return self.source.items([index * len(self.source) // self.count for index in indices])

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
    if config.streaming:
        raise ValueError(f"{config.path}: streaming data has no index; set streaming=false here")
    if config.path == "skimage":
        source = PhotoSource(str(splits.choose(("train", "test"), config.split, prefer, config.path)))
    else:
        found = look(config)
        if found is not None and found.kind == "pictures":
            source = FolderSource(found, config, prefer)
        else:
            source = TableSource(open_table(config, prefer, found, streaming=False))
    if not len(source):
        raise ValueError(f"{readable(config.path)}: holds no images")
    return source if config.limit is None else Spread(source, config.limit)


def open_stream(config: DataConfig, prefer: Sequence[str] = ("train",)) -> Stream:
    """The images that `config` names as they come. Raises as `open_source` does, and for classes that are text."""
    found = look(config)
    where = readable(config.path)
    if config.path == "skimage" or (found is not None and found.kind == "pictures"):
        raise ValueError(f"{where}: images of a folder are read by index; set streaming=false")
    table = open_table(config, prefer, found, streaming=True)
    if table.columns.label_is_text:
        raise ValueError(
            f"{where}: column '{table.columns.label}' holds classes as text, which a stream cannot number; set "
            "streaming=false, or label_column to a column of whole numbers, or to none"
        )
    return Stream(table.dataset, table.columns, about(table, None), table.files)
