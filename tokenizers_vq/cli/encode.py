"""`tvq encode`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tokenizers_vq.cli import common, groups


def encode(
    model: common.Model,
    data: Annotated[
        str, typer.Argument(help="folder of images, parquet or webdataset files, or owner/name of the Hub")
    ],
    out: Annotated[Path, typer.Option(help="folder for the shards; one that is there goes on")],
    shards: Annotated[int | None, typer.Option(min=1, help="number of files; unset: one for 8,192 images")] = None,
    views: Annotated[
        str,
        typer.Option(
            metavar="center|flip|ten-crop",
            help="rows an image: its centre; that and its mirror image; LlamaGen's ten crops",
        ),
    ] = "center",
    label_column: Annotated[str | None, typer.Option(help="column of the classes; none: no classes")] = None,
    class_column: Annotated[
        list[str] | None, typer.Option(help="a further column of classes, kept by its name; may be given several times")
    ] = None,
    caption_column: Annotated[str | None, typer.Option(help="column of the captions; none: no captions")] = None,
    batch_size: common.BatchSize = 32,
    *,
    reading: groups.Reading,
    computing: groups.Computing,
) -> None:
    """Encode images to parquet shards of codes, one row a view; killed and started again it goes on."""
    from tokenizers_vq.data import DataConfig
    from tokenizers_vq.data.shards import recorded_precision, write_codes
    from tokenizers_vq.data.transforms import check_views
    from tokenizers_vq.devices import processes

    check_views(views)
    columns = {"label_column": label_column, "class_columns": class_column or (), "caption_column": caption_column}
    config = DataConfig(**{"path": data, **columns, **reading._asdict()})
    if computing.precision == "auto":
        computing = computing._replace(precision=recorded_precision(out) or "auto")
    encoder = common.open_encoder(model, *computing)
    rank, world = processes()
    with _progress(rank) as progress:
        info = write_codes(
            encoder,
            config,
            out,
            batch_size=batch_size,
            shards=shards,
            views=views,
            rank=rank,
            world=world,
            progress=progress,
        )
    if info["images"] is None:
        common.note(f"process {rank} of {world} is done")
        return
    broken = info["broken"]
    common.name_broken(broken)
    if broken and not info["images"]:
        raise ValueError(f"{data}: none of its {len(broken)} images can be read, so {out} holds no codes")
    skipped = f", {len(broken)} skipped" if broken else ""
    print(f"{info['images']} images in {info['shards']} shards{skipped}: {out}")


@contextmanager
def _progress(rank: int) -> Iterator[Callable[[int], None]]:
    """A bar in the first process, what the writer logs as notes, and the speed at the end."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    start, done = time.perf_counter(), 0
    logger, notes = logging.getLogger("tokenizers_vq.data.shards"), _Notes()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=rank != 0) as bar:
        task = bar.add_task("encoding", total=None)

        def progress(count: int) -> None:
            nonlocal done
            done += count
            bar.update(task, description=f"encoded {_speed(done, start)}")

        logger.addHandler(notes)
        before = logger.level
        logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
        try:
            yield progress
        finally:
            logger.removeHandler(notes)
            logger.setLevel(before)
    if done:
        common.note(f"encoded {_speed(done, start)}")


def _speed(done: int, start: float) -> str:
    return f"{done:,} images, {done / (time.perf_counter() - start):,.1f} a second"


class _Notes(logging.Handler):
    """Log records as notes for the person."""

    def emit(self, record: logging.LogRecord) -> None:
        common.note(record.getMessage())
