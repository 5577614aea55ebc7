"""Tables of images through `datasets`: parquet and webdataset files, saved data sets, the Hub.

`datasets` is handed the very files that `files` chose, one split at a time, so that it has nothing to guess.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenizers_vq.data import remote, splits, tars
from tokenizers_vq.data.columns import Columns, holds_images
from tokenizers_vq.data.files import Found, Peek, find, kind_of, missing, parquet_file, readable

if TYPE_CHECKING:
    from tokenizers_vq.data.config import DataConfig

_ROWS = 128  # read at a time: a whole row group of a parquet file may be gigabytes,
_BYTES = 2**28  # and so may a few rows of large pictures


class Table(NamedTuple):
    """A `datasets.Dataset` or `IterableDataset` of undecoded images, and what is known of it.

    `files` are (name below the chosen folder, path), `where` names the data in errors, `left_out` says what is not
    read, `classes` gives the names of a column's classes in the other splits: those in a column of text, or those that
    stand for numbers, where they are others than this split's or in another order.
    """

    dataset: Any
    columns: Columns
    where: str
    folder: str | None
    split: str | None
    files: list[tuple[str, str]]
    left_out: str
    classes: Callable[[Columns], list[str]]


def open_table(config: DataConfig, prefer: Sequence[str], found: Found | None, streaming: bool) -> Table:
    """The split that `config` names of what `find` found, of a URL, or of the Hub's data set. Raises `ValueError`."""
    if found is not None and found.kind == "saved":
        return _saved(config, prefer, found.root, streaming)
    if found is not None:
        return _local(config, prefer, found, streaming)
    if remote.is_url(config.path):
        return _remote(config, streaming)
    if (error := missing(config.path)) is not None:
        raise error
    return _of_splits(
        config,
        prefer,
        ask(config.path, "the Hub's data set", lambda: _load(config.path, streaming=streaming), hub=True),
        f"the Hub's {config.path}",
        _cache_folders(),
    )


def look(config: DataConfig) -> Found | None:
    """`files.find` for this config: the columns that it names tell tables of images from others."""

    def with_images(file: Path) -> bool:
        return holds_images(_features(file), config.image_column)

    peek = Peek(with_images, tars.count_pictures)
    if not remote.is_url(config.path):
        return find(config.path, peek)
    return None if kind_of(config.path) in ("parquet", "tar") else remote.find(config.path, peek)


def _features(file: Any) -> dict[str, Any]:
    """What each column of a parquet file is to `datasets`; columns of kinds that it does not know are left out."""
    import datasets
    import pyarrow as pa

    def read() -> Any:
        with parquet_file(file) as opened:
            return opened.schema_arrow

    schema = ask(str(file), "parquet", read)
    known: dict[str, Any] = {}
    for field in schema:
        for metadata in (schema.metadata, None):  # the kept features may be damaged or of another version
            try:
                known.update(datasets.Features.from_arrow_schema(pa.schema([field], metadata=metadata)))
                break
            except Exception:
                continue
    return known


def _local(config: DataConfig, prefer: Sequence[str], found: Found, streaming: bool) -> Table:
    where = readable(config.path)
    found_splits = splits.of_tables(found.names, config.split, where)
    split = splits.choose(found_splits.parts, config.split, prefer, where)
    names = [part.name for part in found_splits.parts[split]]
    others = [part.name for name, parts in found_splits.parts.items() if name != split for part in parts]
    files = [(name, str(found.root / name)) for name in names]
    paths = [path for _, path in files]
    beside = len(found_splits.beside)
    left_out = "; ".join(
        [*([found.left_out] if found.left_out else []), *([f"{beside} files of no split"] if beside else [])]
    )
    if found.kind == "tar":
        how = tars.plan(paths[0], config)
        dataset = ask(where, "webdataset", lambda: _tar_rows(paths, how, streaming))
        columns = Columns(tars.features(how), where)

        def classes(columns: Columns) -> list[str]:
            rows = tars.read_samples([str(found.root / name) for name in others], [""] * len(others), how)
            return [row["label"] for row in rows if row["label"] is not None]
    else:
        columns = _columns(_features(paths[0]), config, where, [str(found.root)])
        _refuse_other_columns(files, columns, config)
        dataset = ask(where, "parquet", lambda: _parquet(paths, columns, streaming))

        def classes(columns: Columns) -> list[str]:
            files = [found.root / name for name in others]
            if columns.label_is_text:
                return _texts(files, str(columns.label))
            return _other_names((_features(file) for file in files), columns)

    return Table(
        undecoded(dataset, columns),
        columns,
        where,
        readable(str(found.root.absolute())),
        split,
        files,
        left_out,
        classes,
    )


def _refuse_other_columns(files: Sequence[tuple[str, str]], columns: Columns, config: DataConfig) -> None:
    """Raises `ValueError` for a file whose columns are not those of the first: `datasets` would read them as such."""
    schemas: list[Any] = []
    for name, path in files:
        with parquet_file(path) as opened:
            schema = opened.schema_arrow
        if any(schema.equals(known, check_metadata=True) for known in schemas):
            continue
        schemas.append(schema)
        found = _columns(_features(path), config, readable(path), columns.roots)
        columns.refuse_other(found, readable(files[0][0]), readable(name))


def _other_names(splits_features: Iterable[Mapping[str, Any]], columns: Columns) -> list[str]:
    """Names of classes of the splits that do not number them as `columns` does."""
    own = columns.label_names
    names = [getattr(features.get(str(columns.label)), "names", None) for features in splits_features]
    return [name for its in names if its is not None and tuple(its) != own for name in its]


def _parquet(paths: Sequence[str], columns: Columns, streaming: bool) -> Any:
    import datasets

    for path in paths:
        if "::" in path:
            raise ValueError(f"{readable(path)}: a path with '::' cannot be read; rename it")
    wanted = _features(paths[0])
    places = [path if remote.is_url(path) else str(Path(path).absolute()) for path in paths]
    return _load(
        "parquet",
        data_files={"train": [glob.escape(path) for path in places]},
        columns=columns.used,
        features=datasets.Features({name: wanted[name] for name in columns.used}),
        batch_size=_rows_at_a_time(paths, columns.image),
        streaming=streaming,
    )["train"]


def _rows_at_a_time(paths: Sequence[str], column: str) -> int:
    """So many that they stay within memory, by the size that each file states of its rows unpacked."""
    largest = 0
    for path in paths:
        with parquet_file(path) as file:
            for group in (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)):
                chunks = (group.column(i) for i in range(group.num_columns))
                size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == column)
                largest = max(largest, size // max(1, group.num_rows))
    return max(1, min(_ROWS, _BYTES // max(1, largest)))


def _tar_rows(paths: Sequence[str], how: tars.Plan, streaming: bool) -> Any:
    import datasets

    kwargs = {"tars": list(paths), "stamps": [_stamp(path) for path in paths], "how": how}
    options = {"features": tars.features(how), "gen_kwargs": kwargs}
    if streaming:
        return datasets.IterableDataset.from_generator(tars.read_samples, **options)
    return datasets.Dataset.from_generator(tars.read_samples, writer_batch_size=16, **options)


def _stamp(path: str) -> str:
    if "://" in path:
        return ""
    known = Path(path).stat()
    return f"1/{known.st_size}/{known.st_mtime_ns}"  # 1: the form of the rows, which are kept


def _columns(features: Mapping[str, Any], config: DataConfig, where: str, roots: Sequence[str] = ()) -> Columns:
    return Columns(
        features,
        where,
        image=config.image_column,
        label=config.label_column,
        captions=config.caption_column,
        roots=roots,
        classes=config.class_columns,
    )


def _remote(config: DataConfig, streaming: bool) -> Table:
    """Files at a URL, or a glob of them where its file system has one."""
    url, kind = config.path, kind_of(config.path)
    if kind not in ("parquet", "tar"):
        raise ValueError(f"{readable(url)}: neither a .parquet nor a .tar file; give one of these")
    splits.choose(["train"], config.split, (), readable(url))
    if kind == "tar":
        paths = ask(url, "webdataset", lambda: _expanded(url))
        how = ask(url, "webdataset", lambda: tars.plan(paths[0], config))
        dataset = ask(url, "webdataset", lambda: _tar_rows(paths, how, streaming))
        columns = Columns(tars.features(how), readable(url))
    else:
        loaded = ask(url, "parquet", lambda: _load("parquet", data_files=[url], batch_size=_ROWS, streaming=streaming))
        dataset = loaded["train"]
        columns = _columns(_known_features(dataset), config, readable(url))
    return Table(undecoded(dataset, columns), columns, readable(url), None, "train", [(url, url)], "", lambda _: [])


def _expanded(url: str) -> list[str]:
    import fsspec

    if not glob.has_magic(url.split("?")[0]):
        return [url]
    system, path = fsspec.core.url_to_fs(url)
    return [system.unstrip_protocol(name) for name in sorted(system.glob(path))] or [url]


def _saved(config: DataConfig, prefer: Sequence[str], root: Path, streaming: bool) -> Table:
    import datasets

    def load() -> Mapping[str, Any]:
        for state in sorted(root.rglob("state.json")):
            for file in json.loads(state.read_text(encoding="utf-8")).get("_data_files", []):
                if Path(file["filename"]).name != file["filename"]:
                    raise ValueError(f"{state} names a file outside its folder, {readable(file['filename'])}")
        saved = datasets.load_from_disk(str(root))
        saved = saved if isinstance(saved, dict) else {"train": saved}
        return {name: part.to_iterable_dataset() if streaming else part for name, part in saved.items()}

    loaded = ask(config.path, "saved data set", load)
    table = _of_splits(config, prefer, loaded, readable(config.path), [str(root)])
    inside = root / str(table.split) if (root / "dataset_dict.json").is_file() else root
    files = [(path.name, str(path)) for path in sorted(inside.glob("*.arrow"))]
    return table._replace(folder=readable(str(inside.absolute())), files=files)


def _of_splits(
    config: DataConfig, prefer: Sequence[str], loaded: Mapping[str, Any], where: str, roots: Sequence[str]
) -> Table:
    if config.split == splits.EVERYTHING and splits.EVERYTHING not in loaded:
        raise ValueError(f"{where}: split=all reads files and folders; here give one of {', '.join(loaded)}")
    split = splits.choose(loaded, config.split, prefer, where)
    dataset = loaded[str(split)]
    columns = _columns(_known_features(dataset), config, where, roots)

    def classes(columns: Columns) -> list[str]:
        parts = [part for name, part in loaded.items() if name != split and columns.label in (part.features or {})]
        if not columns.label_is_text:
            return _other_names((part.features for part in parts), columns)
        return [name for part in parts for name in part.unique(columns.label) if name is not None]

    return Table(undecoded(dataset, columns), columns, where, None, split, _checksums(dataset), "", classes)


def _checksums(dataset: Any) -> list[tuple[str, str]]:
    """Files of a data set of the Hub and their sizes, as far as `datasets` knows them; revisions are left out."""
    known = getattr(dataset.info, "download_checksums", None) or {}
    return sorted(
        (f"{name.rsplit('@', 1)[-1].partition('/')[2]}, {of.get('num_bytes')} bytes", "") for name, of in known.items()
    )


def _known_features(dataset: Any) -> Mapping[str, Any]:
    return dataset.features if dataset.features is not None else dataset._resolve_features().features


def undecoded(dataset: Any, columns: Columns) -> Any:
    """`dataset` (or stream) with only the columns in use, images as bytes or paths."""
    import datasets

    if dataset.features is None:
        dataset = dataset._resolve_features()
    keep = [*columns.used, *(["unread"] if "unread" in dataset.features else [])]
    dataset = dataset.select_columns(keep)
    if isinstance(dataset.features[columns.image], datasets.Image):
        dataset = dataset.cast_column(columns.image, datasets.Image(decode=False))
    return dataset


def _texts(files: Sequence[Any], column: str) -> list[str]:
    found: set[str] = set()
    for file in files:
        with parquet_file(file) as opened:
            if column in opened.schema_arrow.names:
                found.update(opened.read(columns=[column])[column].unique().to_pylist())
    return [name for name in found if name is not None]


def _cache_folders() -> list[str]:
    """Where `datasets` keeps files of the Hub, the only ones that the Hub's tables may name."""
    import datasets
    from huggingface_hub import constants

    known = (datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE)
    return [os.path.abspath(str(folder)) for folder in known]  # noqa: PTH100 (text)


def _load(builder: str, **options: Any) -> Mapping[str, Any]:
    import datasets

    return datasets.load_dataset(builder, **options)


def ask(what: str, kind: str, call: Callable[[], Any], hub: bool = False) -> Any:
    """What `call` gives, its errors as one line about `what`: `datasets` raises its own kinds for each."""
    try:
        with _quietly():
            return call()
    except Exception as error:  # network, permission, a damaged file
        while error.__cause__ is not None and isinstance(error.__cause__, Exception):
            error = error.__cause__
        if remote.is_url(what) and (told := remote.explained(what, error)) is not None:
            raise told from None
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if "corresponds to no data" in reason:  # a table without rows
            raise ValueError(f"{readable(what)}: holds no images") from None
        if hub:
            raise FileNotFoundError(f"no folder or file {what}, and the Hub did not give it: {reason}") from None
        if isinstance(error, tars.UnreadableTar):  # which says all, and which file
            raise error from None
        raise ValueError(f"{readable(what)}: cannot be read as {kind}: {reason}") from None


@contextmanager
def _quietly() -> Iterator[None]:
    """`datasets` logs what it raises too."""
    from datasets.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)
