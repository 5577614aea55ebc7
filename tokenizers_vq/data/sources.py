"""Where images come from: folders, parquet, webdataset and the Hub through `datasets`, never decoded here."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from pydantic import model_validator
from typing_extensions import Self

from tokenizers_vq.config import Config, ConfigError, nearest
from tokenizers_vq.data import photos

EXTENSIONS = frozenset(
    f".{name}"
    for names in ("jpg jpeg jpe jfif png apng webp gif bmp dib tif tiff", "ppm pgm pbm pnm jp2 j2k avif ico tga npy")
    for name in names.split()
)
SPLITS = frozenset(("train", "training", "test", "testing", "val", "valid", "validation", "dev"))
_LABELS = ("label", "labels", "cls", "class", "fine_label")


class DataConfig(Config):
    """What images to read, and how a training view is cut from them."""

    path: str
    """folder of images, parquet or webdataset files (folder, file or glob), Hub name, or skimage (its photographs)"""
    split: str | None = None
    """name of the split; unset: the only one, else train in training and test in evaluation"""
    streaming: bool = False
    """read parquet, webdataset or Hub data as it comes, shuffled in a buffer, without storing it"""
    image_column: str | None = None
    """column of the images; unset: the one that holds images"""
    range: tuple[float, float] | None = None
    """values of black and white in .npy arrays and 16-bit files; unset: all of uint8 and uint16, [0, 1] of floats"""
    max_pixels: int | None = None
    """larger images are broken, not decoded: a pixel costs each loader 12 bytes and more; unset: 89,478,485 (1 GiB)"""
    label_column: str | None = None
    """column of the classes; unset: the one that holds classes, or a folder's sub-folders"""
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

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(("scale",), f"needs two rising shares within (0, 1], got {list(self.scale)}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(("ratio",), f"needs two rising positive ratios, got {list(self.ratio)}")
        if self.range is not None:
            if not all(math.isfinite(bound) for bound in self.range):
                raise ConfigError(("range",), f"needs finite numbers, got {list(self.range)}")
            if not self.range[0] < self.range[1]:
                raise ConfigError(("range",), f"needs black below white, got {list(self.range)}")
        if self.max_pixels is not None and self.max_pixels < 1:
            raise ConfigError(("max_pixels",), f"must be 1 or more, got {self.max_pixels}")
        if self.workers < 0:
            raise ConfigError(("workers",), f"must be 0 or more, got {self.workers}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(("limit",), f"must be 1 or more, got {self.limit}")
        if self.shuffle_buffer < 1:
            raise ConfigError(("shuffle_buffer",), f"must be 1 or more, got {self.shuffle_buffer}")
        return self


class Item(NamedTuple):
    """One undecoded image: a path, a file's bytes or an array; its name; its class or -1."""

    image: str | bytes | np.ndarray
    key: str
    label: int


class Source(Protocol):
    """Images by index. `description` is a line for people, `label_names` is None where there are no classes."""

    description: str
    label_names: tuple[str, ...] | None

    def __len__(self) -> int: ...

    def items(self, indices: Sequence[int]) -> list[Item]: ...


class PhotoSource:
    """Windows of scikit-image's photographs; the class is the photograph."""

    def __init__(self, split: str) -> None:
        self.paths, self.windows = photos.windows(split)
        self.label_names: tuple[str, ...] | None = tuple(path.stem for path in self.paths)
        side = "left" if split == "train" else "right"
        self.description = (
            f"{len(self.windows)} overlapping {photos.WINDOW}x{photos.WINDOW} windows of {len(self.paths)} photographs "
            f"inside the installed scikit-image (split {split}: the {side} part of each); a demonstration, no benchmark"
        )

    def __len__(self) -> int:
        return len(self.windows)

    def items(self, indices: Sequence[int]) -> list[Item]:
        result = []
        for number, top, left in (self.windows[index] for index in indices):
            pixels = photos.photograph(self.paths[number])[top : top + photos.WINDOW, left : left + photos.WINDOW]
            result.append(Item(pixels, f"{self.paths[number].stem}/{top:04d}-{left:04d}", number))
        return result


class Columns:
    """Which columns of a table hold image, name and class; turns its rows into items."""

    def __init__(self, features: Mapping[str, Any], config: DataConfig) -> None:
        import datasets

        pictures = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
        if config.image_column is not None:
            if config.image_column not in features:
                raise ValueError(
                    f"{config.path}: no column '{config.image_column}'{nearest(config.image_column, features)}"
                )
            pictures = [config.image_column]
        if not pictures:
            names = ", ".join(features)
            raise ValueError(f"{config.path}: no column holds images; set image_column to one of: {names}")
        self.images = pictures  # several in a webdataset that mixes formats
        self.label = config.label_column
        if self.label is not None and self.label not in features:
            raise ValueError(f"{config.path}: no column '{self.label}'{nearest(self.label, features)}")
        if self.label is None:
            classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
            whole = [
                name for name in _LABELS if str(getattr(features.get(name), "dtype", "")).startswith(("int", "uint"))
            ]
            self.label = next(iter(classes + whole), None)
        feature = features.get(self.label) if self.label else None
        self.label_names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
        self.numbers: dict[Any, int] | None = None  # for classes that are written as text
        self.key = next((name for name in ("__key__", "key") if name in features), None)
        self.use_path = False

    def item(self, row: Mapping[str, Any], index: int) -> Item:
        image = next((row[name] for name in self.images if row[name] is not None), None)
        path = image.get("path") if isinstance(image, dict) else None
        key = str(row[self.key]) if self.key else path if self.use_path and path else f"{index:08d}"
        content = (image.get("bytes") or path) if isinstance(image, dict) else image
        label = row[self.label] if self.label else None
        if self.numbers is not None:
            label = self.numbers.get(label)
        return Item(b"" if content is None else content, key, -1 if label is None else int(label))


class TableSource:
    """A `datasets.Dataset` with its images left undecoded."""

    def __init__(self, dataset: Any, config: DataConfig, description: str) -> None:
        self.columns = Columns(dataset.features, config)
        self.dataset = undecoded(dataset, self.columns, config)
        columns, label = self.columns, self.columns.label
        if label is not None and getattr(self.dataset.features[label], "dtype", None) == "string":
            columns.label_names = tuple(sorted(name for name in self.dataset.unique(label) if name is not None))
            columns.numbers = {name: number for number, name in enumerate(columns.label_names)}
        columns.use_path = columns.key is None and _distinct_paths(self.dataset, columns.images[0])
        self.label_names, self.description = columns.label_names, description

    def __len__(self) -> int:
        return len(self.dataset)

    def items(self, indices: Sequence[int]) -> list[Item]:
        table = self.dataset[list(indices)]
        rows = ({name: column[i] for name, column in table.items()} for i in range(len(indices)))
        return [self.columns.item(row, index) for row, index in zip(rows, indices, strict=True)]


class Spread:
    """`count` items of a source, evenly spread, in order: the first `count` would be the first classes only."""

    def __init__(self, source: Source, count: int) -> None:
        self.source, self.count, self.label_names = source, min(count, len(source)), source.label_names
        self.description = f"{self.count} of {source.description}"

    def __len__(self) -> int:
        return self.count

    def items(self, indices: Sequence[int]) -> list[Item]:
        return self.source.items([index * len(self.source) // self.count for index in indices])


def undecoded(dataset: Any, columns: Columns, config: DataConfig) -> Any:
    """`dataset` (or stream) with only the columns in use, images as bytes or paths. Raises `ValueError`."""
    import datasets

    used = [*columns.images, *([columns.label] if columns.label else []), *([columns.key] if columns.key else [])]
    dataset = dataset.select_columns(list(dict.fromkeys(used)))
    for name in columns.images:
        feature = dataset.features[name]
        if not isinstance(feature, datasets.Image) and getattr(feature, "dtype", "") not in ("binary", "string"):
            raise ValueError(f"{config.path}: column '{name}' holds {feature}, not images; set image_column")
        dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return dataset


def _distinct_paths(dataset: Any, column: str) -> bool:
    import pyarrow.compute as pc

    paths = pc.struct_field(dataset.data[column], "path")
    return paths.null_count == 0 and len(pc.unique(paths)) == len(paths)


def open_source(config: DataConfig, prefer: Sequence[str] = ("train",)) -> Source:
    """The images that `config` names. `prefer`: which split to take where there are several and none is set.

    Raises `FileNotFoundError` for a missing path, `ValueError` for a missing split or column, each in one line.
    """
    source: Source
    if config.streaming:
        raise ValueError(f"{config.path}: streaming data has no index; set streaming=false here")
    if config.path == "skimage":
        source = PhotoSource(_choose(config, ("train", "test"), prefer))
    else:
        path = Path(config.path).expanduser()
        pictures = _pictures(path) if path.is_dir() or (path.suffix.lower() in EXTENSIONS and path.is_file()) else []
        source = _folder(path, pictures, config, prefer) if pictures else _table(config, prefer)
    if not len(source):
        raise ValueError(f"{config.path}: holds no images")
    return source if config.limit is None else Spread(source, config.limit)


def open_stream(config: DataConfig, prefer: Sequence[str] = ("train",)) -> tuple[Any, Columns]:
    """An undecoded `datasets.IterableDataset` and what its columns are. Raises as `open_source` does."""
    loaded, _ = _load(config, streaming=True)
    stream = loaded[_choose(config, tuple(loaded), prefer)]
    if stream.features is None:
        stream = stream._resolve_features()
    columns = Columns(stream.features, config)
    if columns.label is not None and getattr(stream.features[columns.label], "dtype", None) == "string":
        raise ValueError(
            f"{config.path}: column '{columns.label}' is text, which a stream cannot number; unset streaming"
        )
    return undecoded(stream, columns, config), columns


def _choose(config: DataConfig, splits: Sequence[str], prefer: Sequence[str]) -> str:
    if config.split is not None:
        if config.split not in splits:
            raise ValueError(f"{config.path}: no split '{config.split}'; it has: {', '.join(splits)}")
        return config.split
    return next((name for name in prefer if name in splits), splits[0])


def _pictures(path: Path) -> list[str]:
    """Paths of the pictures below a folder, relative to it, sorted; hidden files and folders are passed over."""
    if path.is_file():
        return [path.name]
    found = []
    for folder, folders, files in os.walk(path, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(folder).relative_to(path)
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS:  # noqa: PTH122 (speed)
                found.append((inside / name).as_posix())
    return sorted(found)


def _folder(path: Path, pictures: list[str], config: DataConfig, prefer: Sequence[str]) -> Source:
    """A table of paths. `imagefolder` would leave out .npy and give the sub-folder's name to mixed depths."""
    import datasets

    root = path.parent if path.is_file() else path
    tops = sorted({name.split("/", 1)[0] if "/" in name else "" for name in pictures})
    if config.split is not None or (len(tops) > 0 and all(top.lower() in SPLITS for top in tops)):
        if "" in tops or (config.split is not None and config.split not in tops):
            have = ", ".join(top for top in tops if top) or "none"
            raise ValueError(
                f"{path}: no sub-folder for split '{config.split}' (sub-folders: {have}); unset split for all"
            )
        inside = _choose(config, tops, prefer) + "/"
        pictures = [name for name in pictures if name.startswith(inside)]
    else:
        inside = ""
    parts = [name[len(inside) :].split("/") for name in pictures]
    names = sorted({part[0] for part in parts}) if all(len(part) > 1 for part in parts) else []
    columns: dict[str, list[Any]] = {"image": [str(root / name) for name in pictures], "key": pictures}
    features = datasets.Features({"image": datasets.Image(decode=False), "key": datasets.Value("string")})
    if len(names) > 1:
        numbers = {name: number for number, name in enumerate(names)}
        columns["label"] = [numbers[part[0]] for part in parts]
        features["label"] = datasets.ClassLabel(names=names)
    dataset = datasets.Dataset.from_dict(columns, features=features)
    return TableSource(dataset, config, f"{len(pictures)} images in {root / inside}")


def _table(config: DataConfig, prefer: Sequence[str]) -> Source:
    loaded, what = _load(config, streaming=False)
    split = _choose(config, tuple(loaded), prefer)
    return TableSource(loaded[split], config, f"{len(loaded[split])} images of {what}, split {split}")


def _load(config: DataConfig, streaming: bool) -> tuple[Mapping[str, Any], str]:
    """Every split of parquet or webdataset files, a folder of `save_to_disk`, or a Hub name."""
    import datasets

    text = config.path
    path = Path(text).expanduser()
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            saved = datasets.load_from_disk(str(path))
            saved = saved if isinstance(saved, dict) else {"train": saved}
            return {name: part.to_iterable_dataset() if streaming else part for name, part in saved.items()}, text
        files = [str(file) for file in sorted(path.rglob("*")) if file.is_file()]
        builder = next((kind for file in files if (kind := _builder(file))), None)
        if builder is None:
            if streaming and _pictures(path):
                raise ValueError(f"{text}: a folder of images is read by index; set streaming=false")
            raise FileNotFoundError(f"no images, parquet or tar files in folder {text}; check the path")
        return _ask(text, builder, data_dir=str(path), streaming=streaming), text
    if "://" in text:
        files = [text]
    else:
        files = sorted(glob.glob(str(path))) if glob.has_magic(text) else [str(path)] if path.is_file() else []  # noqa: PTH207
    if files:
        builder = _builder(files[0])
        if builder is None:
            raise ValueError(f"{files[0]}: neither an image, a .parquet nor a .tar file; give one of these or a folder")
        return _ask(text, builder, data_files=files, streaming=streaming), text
    written_as_path = path.is_absolute() or text.startswith((".", "~")) or text.endswith("/") or text.count("/") > 1
    if written_as_path or glob.has_magic(text) or _builder(text) or path.suffix.lower() in EXTENSIONS:
        raise FileNotFoundError(f"no data at {text}; give an existing folder, file or glob, a Hub name, or skimage")
    return _ask(text, text, streaming=streaming), f"the Hub's {text}"


def _builder(file: str) -> str | None:
    name = file.lower().split("?")[0]
    return (
        "parquet" if name.endswith(".parquet") else "webdataset" if name.endswith((".tar", ".tar.gz", ".tgz")) else None
    )


def _ask(text: str, builder: str, **options: Any) -> Mapping[str, Any]:
    import datasets

    try:
        return datasets.load_dataset(builder, **options)
    except Exception as error:  # network, permission, a damaged file: datasets raises its own kinds for each
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if builder == text:
            raise FileNotFoundError(f"no folder or file {text}, and the Hub did not give it: {reason}") from None
        raise ValueError(f"{text}: cannot be read as {builder}: {reason}") from None
