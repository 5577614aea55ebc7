"""Codes on disk: a folder of parquet shards, one row an image (or a view of one), and `codes.json` beside them.

One folder holds one layout and one fingerprint. A shard is written aside and renamed, so what exists is done: a run
killed at any moment and started again loses and doubles nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.data.loading import evaluation_batches
from tokenizers_vq.data.sources import DataConfig, open_source
from tokenizers_vq.data.transforms import VIEWS, check_views, cut_views, size_for_views
from tokenizers_vq.folders import write_atomically

INFO = "codes.json"
IMAGES_A_SHARD = 8192
_READING = ("path", "split", "streaming", "image_column", "range", "label_column", "limit")


class Encoder(Protocol):
    """What `write_codes` needs of a `BatchEncoder`."""

    name: str | None
    image_size: Any
    layout: CodeLayout
    fingerprint: str
    precision: str

    @property
    def channels(self) -> int: ...

    def encode(self, images: Tensor) -> Tensor: ...


def shard_name(part: int, parts: int) -> str:
    """File name of shard `part` of `parts`."""
    return f"codes-{part:05d}-of-{parts:05d}.parquet"


def write_codes(
    encoder: Encoder,
    data: DataConfig,
    out: Path | str,
    *,
    batch_size: int = 32,
    shards: int | None = None,
    views: str = "center",
    rank: int = 0,
    world: int = 1,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Encode a split into `out`, going on where an earlier call stopped; returns what `codes.json` says.

    Columns: `codes` (fixed-size list of N), `fingerprint`, `key`, `label` (-1 for none). Process `rank` of `world`
    writes shards rank, rank + world, ...; the one that finds all shards there completes `codes.json` with `images` and
    `broken` (name -> reason). `shards`: number of files, unset what the folder has, else by the number of images.
    `views`: one of `transforms.VIEWS`; where they are several, an image's rows follow each other and a column `view`
    numbers them. `progress` is called with the number of images after every batch.

    Raises `ValueError` for unknown views, where `out` holds codes made otherwise, the field named, and what
    `open_source` raises.
    """
    out = Path(out)
    check_views(views)
    before = _read_info(out) if (out / INFO).is_file() else None
    if before is None and out.is_dir() and any(out.glob("*.parquet")):
        raise ValueError(f"{out} holds parquet files but no {INFO}: give another --out")
    source = None if data.streaming else open_source(data, _PREFER)
    found = None if source is None else len(source)
    if shards is None:
        shards = before["shards"] if before else max(world, -(-(found or 1) // IMAGES_A_SHARD))
    if shards < 1:
        raise ValueError(f"needs at least 1 shard, got {shards}")
    info = {
        "tokenizer": encoder.name,
        "fingerprint": encoder.fingerprint,
        "layout": encoder.layout.to_dict(),
        "image_size": encoder.image_size if isinstance(encoder.image_size, int) else list(encoder.image_size),
        "channels": encoder.channels,
        "views": views,
        "preprocessing": VIEWS[views].preprocessing,
        "precision": encoder.precision,
        "data": {name: value for name, value in data.to_dict().items() if name in _READING},
        "source": None if source is None else source.description,
        "found": found,
        "label_names": None if source is None or source.label_names is None else list(source.label_names),
        "shards": shards,
        "images": None,
        "broken": None,
    }
    if before is None:
        write_atomically(out / INFO, json.dumps(info, indent=2, ensure_ascii=False) + "\n")
    else:
        _refuse_other(out, before, info)
    for part in range(rank, shards, world):
        if not (out / shard_name(part, shards)).is_file():
            _write_shard(encoder, data, out, part, info, batch_size, progress)
    return _complete(out, info if before is None else before)


_PREFER = ("train", "training", "test", "validation", "val")


def recorded_precision(out: Path | str) -> str | None:
    """The precision of the codes in `out`, so that `auto` stays what it was; None for a new folder."""
    return _read_info(Path(out))["precision"] if (Path(out) / INFO).is_file() else None


def _write_shard(
    encoder: Encoder,
    data: DataConfig,
    out: Path,
    part: int,
    info: dict[str, Any],
    batch_size: int,
    progress: Callable[[int], None] | None,
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    views = VIEWS[info["views"]].rows
    batches = evaluation_batches(
        data,
        image_size=size_for_views(encoder.image_size, info["views"]),
        channels=encoder.channels,
        batch_size=batch_size,
        shard=(part, info["shards"]),
        prefer=_PREFER,
    )
    dtype, length = _dtype(encoder.layout), encoder.layout.length
    schema = pa.schema(
        {
            "codes": pa.list_(pa.from_numpy_dtype(dtype), length),
            "fingerprint": pa.string(),
            "key": pa.string(),
            "label": pa.int64(),
            **({"view": pa.int8()} if views > 1 else {}),
        }
    )
    tables = []
    for batch in batches:
        images = cut_views(batch["images"], encoder.image_size, info["views"])
        codes = np.concatenate([encoder.encode(part).numpy() for part in images.split(batch_size)]).astype(dtype)
        columns = [
            pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), length),
            pa.array([encoder.fingerprint] * len(codes), pa.string()),
            pa.array([key for key in batch["keys"] for _ in range(views)], pa.string()),
            pa.array(batch["labels"].repeat_interleave(views).numpy(), pa.int64()),
            *([pa.array(list(range(views)) * len(batch["keys"]), pa.int8())] if views > 1 else []),
        ]
        tables.append(pa.table(columns, schema=schema))
        if progress is not None:
            progress(len(batch["keys"]))
    # the shard's own broken files travel in its metadata: there with the shard, or not at all
    metadata = {"broken": json.dumps(batches.broken, ensure_ascii=False)}
    table = pa.concat_tables([schema.empty_table(), *tables]).replace_schema_metadata(metadata)
    final = out / shard_name(part, info["shards"])
    aside = final.with_name(f".{final.name}.partial")
    with aside.open("wb") as file:
        pq.write_table(table, file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(final)


def _complete(out: Path, info: dict[str, Any]) -> dict[str, Any]:
    import pyarrow.parquet as pq

    images, broken = 0, {}
    for part in range(info["shards"]):
        path = out / shard_name(part, info["shards"])
        if not path.is_file():  # another process is at it
            return info
        file = pq.ParquetFile(path)
        images += file.metadata.num_rows // VIEWS[info["views"]].rows
        broken.update(json.loads((file.schema_arrow.metadata or {}).get(b"broken", b"{}")))
    info = {**info, "images": images, "broken": broken}
    if _read_info(out) != info:
        write_atomically(out / INFO, json.dumps(info, indent=2, ensure_ascii=False) + "\n")
    return info


def _refuse_other(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    if before.get("fingerprint") != now["fingerprint"]:
        raise ValueError(
            f"{out} holds codes of another tokenizer ({_short(before.get('fingerprint'))}, "
            f"this one is {_short(now['fingerprint'])}): give another --out"
        )
    # a tokenizer or data folder may be written another way and be the same
    names = [name for name in now if name not in ("tokenizer", "fingerprint", "data", "source", "images", "broken")]
    pairs = {name: (before.get(name), now[name]) for name in names}
    old = before.get("data", {})
    pairs.update({f"data.{name}": (old.get(name), value) for name, value in now["data"].items()})
    pairs["data.path"] = (_resolved(old.get("path")), _resolved(now["data"]["path"]))
    for name, (was, wanted) in pairs.items():
        if was != wanted:
            raise ValueError(f"{out} holds codes made with {name} = {was}, now {wanted}: give another --out")


def _resolved(path: str | None) -> str | None:
    return str(Path(path).expanduser().resolve()) if path and Path(path).expanduser().exists() else path


def _short(fingerprint: str | None) -> str:
    return str(fingerprint)[:12]


def _dtype(layout: CodeLayout) -> Any:
    largest = max(layout.sizes) - 1
    return next(kind for kind in (np.uint16, np.uint32, np.int64) if largest <= np.iinfo(kind).max)


def _read_info(folder: Path) -> dict[str, Any]:
    path = folder / INFO
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {INFO}: it is no folder of codes; `tvq encode` makes one")
    try:
        info = {"views": "center", **json.loads(path.read_text(encoding="utf-8"))}  # what older ones do not say
        CodeLayout.from_dict(info["layout"])
        return {name: info[name] for name in ("fingerprint", "shards", "precision", "images")} and info
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error}): encode again") from None


class CodeShards:
    """The rows of a folder of codes, in order: `shards[indices]` is int64 `(b, N)`.

    Codes stay in their stored, small dtype (memory-mapped files, one copy of the codes); `codes` converts all of them.
    """

    def __init__(self, folder: Path, info: dict[str, Any], array: np.ndarray, table: Any) -> None:
        self.folder, self.info, self.array, self._table = folder, info, array, table
        self.layout = CodeLayout.from_dict(info["layout"])
        """layout of the codes"""
        self.fingerprint: str = info["fingerprint"]
        """fingerprint of the tokenizer that made them"""
        self.tokenizer: str | None = info.get("tokenizer")
        """path or name of that tokenizer, as it was given"""
        names = info.get("label_names")
        self.label_names: tuple[str, ...] | None = None if names is None else tuple(names)
        """names of the classes, where there are any"""

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, indices: Any) -> Tensor:
        if isinstance(indices, Tensor):
            indices = indices.numpy()
        return torch.from_numpy(np.asarray(self.array[indices]).astype(np.int64))

    @property
    def codes(self) -> Tensor:
        """All codes, int64 `(n, N)`, flat as the layout orders them."""
        return self[:]

    @property
    def labels(self) -> Tensor:
        """int64 `(n,)`, -1 where there is no class."""
        return torch.from_numpy(np.array(self._table["label"].to_numpy(), dtype=np.int64))

    @property
    def keys(self) -> list[str]:
        """Names of the images, each as often as it has views."""
        return self._table["key"].to_pylist()

    @property
    def names(self) -> list[str]:
        """Names of the rows: the images', and behind it the number of the view where there are several."""
        if "view" not in self._table.column_names:
            return self.keys
        numbered = zip(self.keys, self._table["view"].to_pylist(), strict=True)
        return [f"{Path(key).with_suffix('')}-view{view}" for key, view in numbered]


def read_codes(folder: Path | str, fingerprint: str | None = None) -> CodeShards:
    """The codes that `write_codes` left in a folder; `fingerprint` is the tokenizer's that they must be of.

    Raises `FileNotFoundError` for no such folder; `ValueError` for codes of another tokenizer or of several, for
    missing or unreadable shards and for codes outside the layout.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    folder = Path(folder)
    info = _read_info(folder)
    wanted = info["fingerprint"]
    if fingerprint not in (None, wanted):
        raise ValueError(
            f"{folder} holds codes of another tokenizer: their fingerprint is {_short(wanted)}, "
            f"the tokenizer's is {_short(fingerprint)}"
        )
    layout = CodeLayout.from_dict(info["layout"])
    names = [shard_name(part, info["shards"]) for part in range(info["shards"])]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} is not complete: {len(missing)} of {len(names)} shards are missing, first {missing[0]}; "
            "run the same `tvq encode` again"
        )
    extra = sorted(path.name for path in folder.glob("*.parquet") if path.name not in names)
    if extra:
        raise ValueError(f"{folder} holds a file that is not of these codes, {extra[0]}: move it away")
    tables = []
    for name in names:
        try:
            table = pq.read_table(folder / name, memory_map=True).replace_schema_metadata(None)
            seen = pc.unique(table["fingerprint"]).to_pylist()
            lists = table.schema.field("codes").type
        except (pa.ArrowException, KeyError, OSError) as error:
            raise ValueError(f"{folder / name} cannot be read ({str(error).splitlines()[0]}): encode again") from None
        if set(seen) - {wanted}:
            other = next(print_ for print_ in seen if print_ != wanted)
            raise ValueError(
                f"{folder / name} holds codes of another tokenizer ({_short(other)}) than {INFO} says "
                f"({_short(wanted)}): move it away, then run `tvq encode` again"
            )
        if getattr(lists, "list_size", None) != layout.length:
            raise ValueError(f"{folder / name} holds codes of type {lists}, {INFO} says {layout.length} an image")
        tables.append(table)
    table = pa.concat_tables(tables)
    flat = table["codes"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    array = flat.reshape(-1, layout.length)
    limits = np.asarray(layout.sizes)[layout.streams().numpy()]
    if len(array) and bool((array.max(axis=0) >= limits).any()):
        raise ValueError(f"{folder} holds codes beyond its layout's sizes {list(layout.sizes)}: encode again")
    return CodeShards(folder, info, array, table)
