"""Folders of codes, written: a shard a contiguous part of the images, whatever is there already kept."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.data import identity
from tokenizers_vq.data.loading import Batch, Batches, batches_by_part
from tokenizers_vq.data.shards.files import (
    ShardFile,
    class_column,
    code_dtype,
    read_how,
    schema,
    shard_name,
    write_shard,
)
from tokenizers_vq.data.shards.info import (
    INFO,
    MOST_SHARDS,
    CodesInfo,
    DamagedCodes,
    LabelsInfo,
    ReadingInfo,
    RecordInfo,
    differences,
    read_info,
    short,
    write_info,
)
from tokenizers_vq.data.sources import DataConfig, Source, Stream, open_source, open_stream
from tokenizers_vq.data.transforms import VIEWS, check_views, cut_views, size_for_views
from tokenizers_vq.writing import clear, lock

IMAGES_A_SHARD = 8192
_PREFER = ("train", "training", "test", "validation", "val")
_NAME = re.compile(r"codes-\d{5}-of-(\d{5})\.parquet")

logger = logging.getLogger(__name__)


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


class Job(NamedTuple):
    """What the shards of one call have in common."""

    encoder: Encoder
    data: DataConfig
    info: CodesInfo
    out: Path
    batch_size: int
    progress: Callable[[int], None] | None


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
    elsewhere: Callable[[Job, list[int]], None] | None = None,
) -> dict[str, Any]:
    """Encode a split into `out`, going on where an earlier call stopped; returns what `codes.json` says.

    Columns: `codes` (fixed-size list of N), `fingerprint`, `key`, `label` (-1 for none), `class.NAME` of each further
    column of classes, `captions` (list of strings) where the images have any. Process `rank` of `world` writes shards
    rank, rank + world, ...; the one that finds all shards there completes `codes.json` with `images`, `broken` (name
    -> reason), and `rows` and `labels`, by which a folder is opened without reading it. `shards`: number of files,
    unset what the folder has, else by the number of images. `views`: one of `transforms.VIEWS`; where they are several,
    an image's rows follow each other and a column `view` numbers them. `progress` is called with the number of images
    after every batch. A damaged shard is written anew, as is a damaged `codes.json` whose shards say that they were
    made as this call makes them. `elsewhere` is handed the numbers of the shards that are missing, and has them written
    by `write_parts` in other processes; unset, this one writes them. The log says what is read (info) and what was
    damaged (warning).

    Raises `ValueError` for unknown views, where `out` holds codes made otherwise, the field named, or another process
    writes them, and what `open_source` raises; `WriteError` where it cannot be written.
    """
    out = Path(out)
    check_views(views)
    if shards is not None and not 1 <= shards <= MOST_SHARDS:
        raise ValueError(f"needs 1 to {MOST_SHARDS:,} shards, got {shards}")
    with lock(out) if world == 1 else nullcontext():
        if world == 1:
            clear(out)
        opened = open_images(data)
        logger.info("reading %s", opened.about.description)
        info, known = _begin(encoder, data, opened, out, shards, views, world)
        job = Job(encoder, data, info, out, batch_size, progress)
        parts = [part for part in range(rank, info.shards, world) if not _is_done(job, part)]
        if elsewhere is None:
            write_parts(job, parts, opened)
        elif parts:
            elsewhere(job, parts)
        return _complete(out, known, alone=world == 1).to_dict()


def open_images(data: DataConfig) -> Source | Stream:
    """What `write_codes` reads. Raises as `open_source`."""
    return open_stream(data, _PREFER) if data.streaming else open_source(data, _PREFER)


def write_parts(job: Job, parts: Sequence[int], opened: Source | Stream) -> None:
    """Encode some of the shards, one after the other, each from its own images: whoever does it, it is the same file.

    Raises `ValueError` where the images or the tokenizer are not those of the job.
    """
    if job.encoder.fingerprint != job.info.fingerprint:
        raise ValueError(
            f"{job.encoder.name} is another tokenizer ({short(job.encoder.fingerprint)}) than the codes of {job.out} "
            f"are made with ({short(job.info.fingerprint)})"
        )
    if job.encoder.precision != job.info.precision:
        raise ValueError(f"{job.out} holds codes of precision {job.info.precision}, not {job.encoder.precision}")
    label_names = opened.columns.label_names if isinstance(opened, Stream) else opened.label_names
    files, known = _files(opened), job.info.record
    record = identity.record(files, label_names)
    if known is not None and (other := identity.changed(known.to_dict(), record, files)):
        raise ValueError(f"{job.data.path} holds other images here than where the encoding began ({other})")
    size = size_for_views(job.encoder.image_size, job.info.views)
    sizes: dict[str, Any] = {
        "image_size": size,
        "channels": job.encoder.channels,
        "batch_size": job.batch_size,
    }
    for part, batches in batches_by_part(job.data, opened, parts=parts, of=job.info.shards, prefer=_PREFER, **sizes):
        _write(job, part, batches)


def write_rows(out: Path | str, info: CodesInfo, codes: np.ndarray, batch: Batch) -> CodesInfo:
    """Codes `(rows, N)` that are at hand, of the images of a batch, as a folder of one shard.

    Raises `ValueError` where `out` holds anything, `WriteError` where it cannot be written.
    """
    import pyarrow as pa

    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already: give another --out")
    rows = VIEWS[info.views].rows
    info = info.replace(shards=1, images=len(codes) // rows, broken={}, rows=None, labels=None)
    columns = schema(CodeLayout.from_dict(info.layout), rows, info.captions, info.class_names)
    table = pa.table(_columns(codes, batch, info, rows), schema=columns)
    with lock(out):
        write_shard(out / shard_name(0, 1), table, info.how(), {})
        write_info(out, info)
        return _complete(out, info, alone=True)


def recorded_precision(out: Path | str) -> str | None:
    """The precision of the codes in `out`, so that `auto` stays what it was; None for a new folder."""
    info, _ = _found(Path(out))
    known = [info.how()] if info is not None else _made(Path(out))
    return next((how["precision"] for how in known if how and isinstance(how.get("precision"), str)), None)


def _count(opened: Source | Stream) -> int | None:
    return None if isinstance(opened, Stream) else len(opened)


def _describe(encoder: Encoder, data: DataConfig, opened: Source | Stream, shards: int, views: str) -> CodesInfo:
    size = encoder.image_size
    if isinstance(opened, Stream):
        label_names, captions = opened.columns.label_names, opened.columns.captions is not None
        class_names = opened.columns.class_names
    else:
        label_names, captions, class_names = opened.label_names, opened.has_captions, opened.class_names
    reading = {name: value for name, value in data.to_dict().items() if name in ReadingInfo.model_fields}
    return CodesInfo(
        tokenizer=encoder.name,
        fingerprint=encoder.fingerprint,
        layout=encoder.layout.to_dict(),
        image_size=size if isinstance(size, int) else tuple(size),
        channels=encoder.channels,
        views=views,
        preprocessing=VIEWS[views].preprocessing,
        precision=encoder.precision,
        data=ReadingInfo(**reading),
        source=opened.about.description,
        folder=opened.about.folder,
        split=opened.about.split,
        record=RecordInfo(**identity.record(_files(opened), label_names)),
        found=_count(opened),
        label_names=None if label_names is None else tuple(label_names),
        class_names=dict(class_names),
        captions=captions,
        shards=shards,
    )


def _files(opened: Source | Stream) -> list[tuple[str, str]]:
    return opened.files if isinstance(opened, Stream) else opened.files()


def _begin(
    encoder: Encoder,
    data: DataConfig,
    opened: Source | Stream,
    out: Path,
    shards: int | None,
    views: str,
    world: int,
) -> tuple[CodesInfo, CodesInfo]:
    """What this call writes, and what `codes.json` says, which is written where it is missing or damaged."""
    before, problem = _found(out)
    if shards is None:
        number = _numbered(out) or (None if before is None else before.shards)
        shards = number or min(MOST_SHARDS, max(world, -(-(_count(opened) or 1) // IMAGES_A_SHARD)))
    info = _describe(encoder, data, opened, shards, views)
    if before is not None:
        problem = _differs(out, before, info, opened)
    if problem is not None:
        _adopt(out, info, problem)
    if before is not None and problem is None:
        return info, before
    write_info(out, info)
    return info, info


def _found(out: Path) -> tuple[CodesInfo | None, str | None]:
    """What `codes.json` says, or why it cannot be had though there are shards; neither in a new folder."""
    try:
        return read_info(out), None
    except DamagedCodes as error:
        return None, f"{error.path} {error.problem}"
    except FileNotFoundError:
        return None, f"{out} holds parquet files but no {INFO}" if _parquet(out) else None


def _parquet(out: Path) -> list[Path]:
    return sorted(out.glob("*.parquet")) if out.is_dir() else []


def _numbered(out: Path) -> int | None:
    """The number of shards that the names of those in `out` tell."""
    names = (_NAME.fullmatch(path.name) for path in _parquet(out))
    return next((int(name[1]) for name in names if name and int(name[1])), None)


def _made(out: Path) -> list[dict[str, Any] | None]:
    """What the readable parquet files of `out` say of how they were made."""
    found = []
    for path in _parquet(out):
        with suppress(DamagedCodes):
            found.append(read_how(path))
    return found


def _differs(out: Path, before: CodesInfo, now: CodesInfo, opened: Source | Stream) -> str | None:
    """In words, how the codes that `out` holds are others than those of this call; None where they are not."""
    if before.fingerprint != now.fingerprint:
        was, wanted = short(before.fingerprint), short(now.fingerprint)
        return f"{out} holds codes of another tokenizer ({was}, this one is {wanted})"
    how = before.how()
    if before.record is not None:  # which tells the same data, wherever they lie now
        how["data"]["path"] = now.data.path
    if found := differences(how, now.how()):
        return f"{out} holds {found}"
    if before.record is None or now.record is None:
        return None
    changed = identity.changed(before.record.to_dict(), now.record.to_dict(), _files(opened))
    return None if changed is None else f"{out} holds codes of other data ({changed})"


def _adopt(out: Path, info: CodesInfo, problem: str) -> None:
    """Let `codes.json` be written anew, where every shard says that it was made as this call makes it.

    Raises `ValueError` where one does not: it would be lost.
    """
    names = {shard_name(part, info.shards) for part in range(info.shards)}
    known = {path.name for path in _parquet(out)} <= names
    if not known or any(how is None or differences(how, info.how()) for how in _made(out)):
        raise ValueError(f"{problem}: give another --out")
    logger.warning("%s: %s is written again", problem, INFO)


def _is_done(job: Job, part: int) -> bool:
    """Whether a shard is there and whole. Raises `ValueError` for one that was made otherwise."""
    path = job.out / shard_name(part, job.info.shards)
    if not path.is_file():
        return False
    try:
        how, now = read_how(path), job.info.how()
        if how is not None and (other := differences({**how, "data": now["data"]}, now)):
            raise ValueError(f"{path} holds {other}: move it away, then run the same command again")
        with ShardFile(path, job.info) as shard:
            shard.check()
    except DamagedCodes as error:
        logger.warning("%s %s: it is encoded again", error.path, error.problem)
        return False
    return True


def _write(job: Job, part: int, batches: Batches) -> None:
    import pyarrow as pa

    encoder, rows = job.encoder, VIEWS[job.info.views].rows
    columns = schema(encoder.layout, rows, job.info.captions, job.info.class_names)

    def tables() -> Iterator[Any]:
        yield columns.empty_table()
        for batch in batches:
            images = cut_views(batch["images"], encoder.image_size, job.info.views)
            codes = np.concatenate([encoder.encode(images).numpy() for images in images.split(job.batch_size)])
            yield pa.table(_columns(codes, batch, job.info, rows), schema=columns)
            if job.progress is not None:
                job.progress(len(batch["keys"]))

    write_shard(job.out / shard_name(part, job.info.shards), tables(), job.info.how(), batches.broken)


def _columns(codes: np.ndarray, batch: Batch, info: CodesInfo, rows: int) -> dict[str, Any]:
    """The columns of a batch whose images have `rows` rows each."""
    import pyarrow as pa

    layout = CodeLayout.from_dict(info.layout)
    flat = pa.array(codes.astype(code_dtype(layout)).reshape(-1))
    columns = {
        "codes": pa.FixedSizeListArray.from_arrays(flat, layout.length),
        "fingerprint": pa.array([info.fingerprint] * len(codes), pa.string()),
        "key": pa.array([key for key in batch["keys"] for _ in range(rows)], pa.string()),
        "label": pa.array(batch["labels"].repeat_interleave(rows).numpy(), pa.int64()),
    }
    for place, name in enumerate(info.class_names):
        numbers = [classes[place] for classes in batch["classes"] for _ in range(rows)]
        columns[class_column(name)] = pa.array(numbers, pa.int64())
    if rows > 1:
        columns["view"] = pa.array(list(range(rows)) * len(batch["keys"]), pa.int8())
    if info.captions:
        captions = [list(texts) for texts in batch["captions"] for _ in range(rows)]
        columns["captions"] = pa.array(captions, pa.list_(pa.string()))
    return columns


def _complete(out: Path, info: CodesInfo, alone: bool) -> CodesInfo:
    """Where all shards are there, `codes.json` with `images`, `broken`, and what a reader need not count."""
    images, broken, counts = 0, {}, list[int]()
    labels = dict.fromkeys(("label", *map(class_column, info.class_names)), (0, -1))
    for part in range(info.shards):
        path = out / shard_name(part, info.shards)
        if not path.is_file():  # another process is at it
            return info
        try:
            with ShardFile(path, info) as shard:
                images += shard.rows // shard.views
                broken.update(shard.broken)
                counts.append(shard.rows)
                for column, name in zip(labels, (None, *info.class_names), strict=True):
                    found, (bare, highest) = shard.labels(name), labels[column]
                    labels[column] = bare + int((found < 0).sum()), max(highest, int(found.max(initial=-1)))
        except DamagedCodes:
            if alone:
                raise
            return info  # another process is at it
    if broken and not images:
        name, reason = next(iter(broken.items()))
        raise ValueError(f"{out}: none of {len(broken)} images could be read; the first, {name}: {reason}")
    whole = info.replace(
        images=images,
        broken=broken,
        rows=tuple(counts),
        labels={column: LabelsInfo(bare=bare, highest=highest) for column, (bare, highest) in labels.items()},
    )
    if read_info(out) != whole:
        write_info(out, whole)
    return whole
