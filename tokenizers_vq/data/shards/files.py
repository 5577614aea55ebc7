"""One shard: a parquet file with a row an image (or view), checked before a row of it is believed."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.data.shards.info import INFO, MOST_JSON, CodesInfo, DamagedCodes, short
from tokenizers_vq.data.transforms import VIEWS
from tokenizers_vq.text import parse_json
from tokenizers_vq.writing import naming

_MOST_RATIO, _SLACK = 1000, 2**26
_GROUP, _MOST_ROWS = 2**20, 8192
_REPEATED = 2**20

Span = tuple[int, int | None]
ALL: Span = (0, None)


def shard_name(part: int, parts: int) -> str:
    """File name of shard `part` of `parts`."""
    return f"codes-{part:05d}-of-{parts:05d}.parquet"


def code_dtype(layout: CodeLayout) -> Any:
    """The smallest of uint16, uint32 and int64 that holds every code of a layout."""
    largest = max(layout.sizes) - 1
    return next(kind for kind in (np.uint16, np.uint32, np.int64) if largest <= np.iinfo(kind).max)


def rows_within(layout: CodeLayout, size: int) -> int:
    """How many rows have codes of `size` bytes in all: at least one, and no more than a few thousand."""
    return max(1, min(_MOST_ROWS, size // (layout.length * np.dtype(code_dtype(layout)).itemsize)))


def class_column(name: str) -> str:
    """The column of a shard that holds the classes of a further column of the data."""
    return f"class.{name}"


def schema(layout: CodeLayout, views: int, captions: bool, classes: Iterable[str] = ()) -> Any:
    """The columns of a shard, a `pyarrow.Schema`."""
    import pyarrow as pa

    return pa.schema(
        {
            "codes": pa.list_(pa.from_numpy_dtype(code_dtype(layout)), layout.length),
            "fingerprint": pa.string(),
            "key": pa.string(),
            "label": pa.int64(),
            **{class_column(name): pa.int64() for name in classes},
            **({"view": pa.int8()} if views > 1 else {}),
            **({"captions": pa.list_(pa.string())} if captions else {}),
        }
    )


def write_shard(path: Path, tables: Any, how: dict[str, Any], broken: dict[str, str]) -> None:
    """Write a table of `schema`, or several one behind the other, beside its place, then move it there.

    Only a group of rows, about 1 MiB of codes, waits in memory. How the codes were made, and the images that could not
    be read (`broken`, as it is behind the last table), travel in the metadata: there with the shard, or not at all.
    Raises `WriteError`.
    """
    import pyarrow.parquet as pq

    # A name of its own: a worker that was given up for lost may still write the same shard.
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    tables = iter([tables] if hasattr(tables, "schema") else tables)
    first = next(tables)
    rows, group = 0, rows_within(CodeLayout.from_dict(how["layout"]), _GROUP)
    with naming(path):
        try:
            with (
                aside.open("wb") as file,
                pq.ParquetWriter(file, first.schema.remove_metadata(), write_page_checksum=True) as writer,
            ):
                for table in _grouped(chain([first], tables), group):
                    writer.write_table(table, row_group_size=group)
                    rows += len(table)
                described = {"how": how, "broken": broken, "rows": rows}
                writer.add_key_value_metadata(
                    {name: json.dumps(value, ensure_ascii=False) for name, value in described.items()}
                )
                writer.close()
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def _grouped(tables: Iterable[Any], rows: int) -> Iterator[Any]:
    """The rows of `tables` in tables of `rows` each, the last one with what is left."""
    import pyarrow as pa

    waiting: list[Any] = []
    for table in tables:
        waiting.append(table)
        while sum(map(len, waiting)) >= rows:
            whole = pa.concat_tables(waiting)
            yield whole.slice(0, rows)
            waiting = [whole.slice(rows)]
    if waiting and sum(map(len, waiting)):
        yield pa.concat_tables(waiting)


def read_how(path: Path) -> dict[str, Any] | None:
    """How a shard says that it was made, `CodesInfo.how`; None for an older one. Raises `DamagedCodes`."""
    import pyarrow.parquet as pq

    with _named(path):
        metadata = pq.read_metadata(path, memory_map=True).metadata or {}
    return _described(path, metadata, "how", dict)


def count_rows(path: Path) -> int:
    """Rows of a shard, by its footer alone. Raises `DamagedCodes`."""
    import pyarrow.parquet as pq

    with _named(path):
        return int(pq.read_metadata(path, memory_map=True).num_rows)


class ShardFile:
    """A shard that is there: `rows` of it, what it says of itself, and its columns, each checked when it is read.

    Rows are read by `span`, first and behind the last; unset all.
    """

    def __init__(self, path: Path, info: CodesInfo) -> None:
        """`info`: of its folder. Raises `DamagedCodes` for a file that is no shard of such a folder."""
        import pyarrow.parquet as pq

        self.path, self.info, self.layout = path, info, CodeLayout.from_dict(info.layout)
        self.views = VIEWS[info.views].rows
        with _named(path):
            footer = pq.read_metadata(path, memory_map=True)
            # As a dictionary a text that many rows repeat stands in memory once.
            texts = [name for name in ("key", "fingerprint") if name in footer.schema.names]
            self._file = pq.ParquetFile(
                path, metadata=footer, memory_map=True, read_dictionary=texts, page_checksum_verification=True
            )
            self.columns = self._file.schema_arrow
            self.rows: int = footer.num_rows
            metadata = dict(footer.metadata or {})
            self._ends = np.cumsum([footer.row_group(number).num_rows for number in range(footer.num_row_groups)])
        self.how: dict[str, Any] | None = _described(path, metadata, "how", dict)
        """`CodesInfo.how` when it was written; None in older shards"""
        self.broken: dict[str, str] = _described(path, metadata, "broken", dict) or {}
        """images of this shard that could not be read: name -> reason"""
        if not all(isinstance(reason, str) for reason in self.broken.values()):
            raise DamagedCodes(path, "has metadata 'broken' that does not name images")
        written = _described(path, metadata, "rows", int)
        if written not in (None, self.rows):
            raise DamagedCodes(path, f"holds {self.rows} rows, {written} were written")
        self._check()

    def _check(self) -> None:
        import pyarrow as pa

        path, length = self.path, self.layout.length
        further = [class_column(name) for name in self.info.class_names]
        for name in ("codes", "fingerprint", "key", "label", *further, *(["view"] if self.views > 1 else [])):
            if self.columns.get_field_index(name) < 0:
                raise DamagedCodes(path, f"has no column '{name}'")
        lists = self.columns.field("codes").type
        if getattr(lists, "list_size", None) != length or not pa.types.is_integer(lists.value_type):
            raise DamagedCodes(path, f"holds codes of type {lists}, {INFO} says {length} whole numbers an image")
        self._bound("codes", self.rows * (length * lists.value_type.bit_width // 8 + 1))
        if self.rows % self.views:
            raise DamagedCodes(path, f"holds {self.rows} rows, which are not whole images of {self.views} views")

    def _bound(self, name: str, unpacked: int) -> None:
        """A few bytes can claim any number of rows: what is unpacked is bounded by what the file weighs."""
        size = self.path.stat().st_size
        if unpacked > _MOST_RATIO * size + _SLACK:
            raise DamagedCodes(self.path, f"of {size:,} bytes claims {unpacked:,} bytes of '{name}'")

    def codes(self, span: Span = ALL) -> np.ndarray:
        """`(rows, N)` in `code_dtype`.

        Raises `DamagedCodes` for null rows and for codes beyond the layout's sizes, `ValueError` where they are those
        of another tokenizer.
        """
        self._check_fingerprint(span)
        first, last = self._span(span)
        length, streams = self.layout.length, self.layout.streams().numpy()
        out = np.empty((last - first, length), code_dtype(self.layout))
        largest = np.asarray([size - 1 for size in self.layout.sizes])[streams]
        done = 0
        with _named(self.path):
            for column in self._slices("codes", (first, last)):
                values = column.flatten()
                if column.null_count or values.null_count or len(values) != len(column) * length:
                    raise DamagedCodes(self.path, "has rows without codes (null)")
                block = values.to_numpy().reshape(-1, length)
                if len(block) and bool((block.min(axis=0) < 0).any() or (block.max(axis=0) > largest).any()):
                    raise DamagedCodes(self.path, f"holds codes beyond its layout's sizes {_few(self.layout.sizes)}")
                out[done : done + len(block)] = block
                done += len(block)
        if done != len(out):
            raise DamagedCodes(self.path, f"holds {done} rows of codes, where it says {len(out)}")
        return out

    def _check_fingerprint(self, span: Span) -> None:
        prints = self._strings("fingerprint", span)
        with _named(self.path):
            others = [print_ for print_ in prints.unique().to_pylist() if print_ != self.info.fingerprint]
        if others:
            raise ValueError(
                f"{self.path} holds codes of another tokenizer ({short(others[0])}) than {INFO} says "
                f"({short(self.info.fingerprint)}): move it away, then run `tvq encode` again"
            )

    def keys(self, span: Span = ALL) -> Any:
        """Names of the images, a `ChunkedArray` of dictionaries of strings. Raises `DamagedCodes` for others."""
        return self._strings("key", span)

    def labels(self, column: str | None = None, span: Span = ALL) -> np.ndarray:
        """int64 `(rows,)`, -1 for none, of the first column of classes or a further one.

        Raises `DamagedCodes` for other types, for nulls and unknown classes.
        """
        names = self.info.label_names if column is None else self.info.class_names[column]
        labels = self._integers("label" if column is None else class_column(column), span)
        if len(labels) and labels.min() < -1:
            raise DamagedCodes(self.path, f"has the label {labels.min()}, where -1 means none")
        if len(labels) and names is not None and labels.max() >= len(names):
            raise DamagedCodes(self.path, f"has the label {labels.max()}, but {INFO} names {len(names)} classes")
        return labels

    def captions(self, span: Span = ALL) -> Any:
        """Captions of the images, a `pyarrow.ChunkedArray` of lists, null or empty for none; None without the column.

        Raises `DamagedCodes` for other types.
        """
        import pyarrow as pa

        if self.columns.get_field_index("captions") < 0:
            return None
        found = self._column("captions", span)
        with _named(self.path):
            lists = found.cast(pa.list_(pa.string()))
            lists.validate(full=True)
            if any(chunk.flatten().null_count for chunk in lists.chunks):
                raise DamagedCodes(self.path, "has captions that are null")
        return lists

    def check(self) -> None:
        """Read every column once. Raises `DamagedCodes` for the first that cannot be what was written."""
        for read in (self.codes, self.keys, self.labels, self.captions, self.check_views):
            read()
        for column in self.info.class_names:
            self.labels(column)

    def check_views(self, span: Span = ALL) -> None:
        """Raises `DamagedCodes` where the views of an image do not follow one another, from 0 on."""
        if self.views > 1:
            first, last = self._span(span)
            if not np.array_equal(self._integers("view", span), np.arange(first, last) % self.views):
                raise DamagedCodes(self.path, f"numbers its views otherwise than 0 to {self.views - 1}, image by image")

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _span(self, span: Span) -> tuple[int, int]:
        return span[0], self.rows if span[1] is None else span[1]

    def _slices(self, name: str, span: tuple[int, int]) -> Iterator[Any]:
        """Arrays of these rows of a column: only the groups of rows in which they lie are unpacked, bit by bit."""
        first, last = span
        starts = np.concatenate([[0], self._ends[:-1]]) if len(self._ends) else self._ends
        groups = np.nonzero((starts < last) & (self._ends > first))[0].tolist()
        if not groups or first >= last:
            return
        at = int(starts[groups[0]])
        for batch in self._file.iter_batches(
            rows_within(self.layout, _GROUP), row_groups=groups, columns=[name], use_threads=False
        ):
            column = batch.column(0)
            low, high = max(first - at, 0), min(last - at, len(column))
            at += len(column)
            if low < high:
                yield column.slice(low, high - low)
            if at >= last:
                return

    def _column(self, name: str, span: Span) -> Any:
        import pyarrow as pa

        first, last = self._span(span)
        with _named(self.path):
            column = pa.chunked_array(list(self._slices(name, (first, last))), self.columns.field(name).type)
        if len(column) != last - first:
            raise DamagedCodes(self.path, f"holds {len(column)} rows of '{name}', where it says {last - first}")
        return column

    def _strings(self, name: str, span: Span) -> Any:
        import pyarrow as pa

        kind = self.columns.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise DamagedCodes(self.path, f"has a column '{name}' of {kind}, not of text")
        column = self._column(name, span)
        if column.null_count:
            raise DamagedCodes(self.path, f"has rows without a '{name}' (null)")
        with _named(self.path):
            column.validate(full=True)
            texts = column.dictionary_encode().cast(pa.dictionary(pa.int32(), pa.string()))
            self._bound(name, sum(_text_bytes(chunk) for chunk in texts.chunks))
            return texts

    def _integers(self, name: str, span: Span) -> np.ndarray:
        import pyarrow as pa

        kind = self.columns.field(name).type
        if not pa.types.is_integer(kind):
            raise DamagedCodes(self.path, f"has a column '{name}' of {kind}, not of whole numbers")
        column = self._column(name, span)
        if column.null_count:
            raise DamagedCodes(self.path, f"has rows without a '{name}' (null)")
        with _named(self.path):
            return np.array(column.cast(pa.int64()).to_numpy(), dtype=np.int64)


def _described(path: Path, metadata: dict[bytes, bytes], name: str, kind: type) -> Any:
    text = metadata.get(name.encode())
    if text is None:
        return None
    try:
        described = _parsed(text) if len(text) <= _REPEATED else parse_json(text.decode(), MOST_JSON)
    except ValueError as error:
        raise DamagedCodes(path, f"has metadata '{name}' that is {error}") from None
    if not isinstance(described, kind):
        raise DamagedCodes(path, f"has metadata '{name}' that is a {type(described).__name__}")
    return described


@lru_cache(maxsize=8)
def _parsed(text: bytes) -> Any:
    """All shards of a folder say the same of themselves, with the names of all classes."""
    return parse_json(text.decode(), MOST_JSON)


def _text_bytes(chunk: Any) -> int:
    """What a dictionary of texts takes when each row has its own."""
    import pyarrow.compute as pc

    lengths = pc.binary_length(chunk.dictionary).to_numpy(zero_copy_only=False)
    return int(lengths[chunk.indices.to_numpy(zero_copy_only=False)].sum(dtype=np.int64))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What a broken parquet file makes the reader say, as one line with the file's name."""
    import pyarrow as pa

    try:
        yield
    except (DamagedCodes, PermissionError):
        raise
    except (pa.ArrowException, OSError, KeyError, ValueError, IndexError, OverflowError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedCodes(path, f"cannot be read ({reason[:200]})") from None


def _few(sizes: tuple[int, ...]) -> str:
    return str(list(sizes)) if len(sizes) <= 16 else f"[{', '.join(map(str, sizes[:16]))}, ...]"
