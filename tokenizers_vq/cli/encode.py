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
    out: Annotated[Path, typer.Option(help="folder for the shards; an unfinished one is resumed")],
    shards: Annotated[
        int | None, typer.Option(min=1, help="number of files; unset: one for every 8,192 images")
    ] = None,
    views: Annotated[
        str,
        typer.Option(
            metavar="center|flip|ten-crop",
            help="views of each image to encode: its centre; the centre and its mirror image; LlamaGen's ten crops",
        ),
    ] = "center",
    keep: Annotated[
        int | None, typer.Option(min=1, help="keep the first codes alone: of a row, levels or scales, so many")
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="column of the classes; none: no classes")] = None,
    class_column: Annotated[
        list[str] | None, typer.Option(help="a further column of classes to keep; may be given several times")
    ] = None,
    caption_column: Annotated[str | None, typer.Option(help="column of the captions; none: no captions")] = None,
    on: Annotated[
        str | None, typer.Option(metavar="ray", help="let the workers of a Ray cluster write the shards")
    ] = None,
    batch_size: common.BatchSize = 32,
    as_json: common.AsJson = False,
    *,
    reading: groups.Reading,
    computing: groups.Computing,
) -> None:
    """Encode images to parquet shards of codes, one row for each view; run again, it resumes."""
    from tokenizers_vq.devices import processes
    from tokenizers_vq.verbs.encode_folder import encode_folder

    options = {**reading._asdict(), **computing._asdict(), "class_columns": tuple(class_column or ())}
    options |= {"label_column": label_column, "caption_column": caption_column}
    rank, world = processes()
    with _progress(rank) as progress:
        done = encode_folder(
            model,
            data,
            out,
            shards=shards,
            views=views,
            keep=keep,
            batch_size=batch_size,
            progress=progress,
            on=on,
            **options,
        )
    if done.images is None:
        common.note(f"process {rank} of {world} is done")
    elif as_json:
        common.print_json(done.to_dict())
    else:
        skipped = f", {len(done.broken)} skipped" if done.broken else ""
        print(f"{done.images} images in {done.shards} shards{skipped}: {out}")


@contextmanager
def _progress(rank: int) -> Iterator[Callable[[int, int | None], None]]:
    """A bar in the first process, and the speed at the end; what is read is said by the first process alone."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    start, encoded = time.perf_counter(), 0
    logger = logging.getLogger("tokenizers_vq.data.shards")
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    hidden = rank != 0 or common.quiet()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as bar:
        task = bar.add_task("encoding", total=None)

        def progress(done: int, total: int | None) -> None:
            nonlocal encoded
            encoded = done
            bar.update(task, description=f"encoded {_speed(done, start)}")

        before = logger.level
        logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
        try:
            yield progress
        finally:
            logger.setLevel(before)
    if encoded:
        common.note(f"encoded {_speed(encoded, start)}")


def _speed(done: int, start: float) -> str:
    return f"{done:,} images, {done / (time.perf_counter() - start):,.1f} a second"
