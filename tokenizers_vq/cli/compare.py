"""`tvq compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tokenizers_vq.cli import common, groups

_QUALITIES = "its qualities, separated by commas; unset: a range from its fewest bits on"


def compare(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="runs, saved folders, shipped names, or owner/name on the Hub"),
    ],
    data: Annotated[str, typer.Option(help="folder of images, parquet or webdataset files, or owner/name of the Hub")],
    out: Annotated[Path, typer.Option(help="folder for compare.html, compare.json, table.md and the plot")],
    size: Annotated[
        int, typer.Option(min=1, help="side of the images in pixels; below 256 the codecs' headers dominate")
    ] = 256,
    codecs: Annotated[
        str, typer.Option(metavar="NAME,...|none", help="image codecs to compare with, or none")
    ] = "jpeg,webp,avif",
    jpeg: Annotated[str | None, typer.Option(metavar="Q,...", help=_QUALITIES)] = None,
    webp: Annotated[str | None, typer.Option(metavar="Q,...", help=_QUALITIES)] = None,
    avif: Annotated[str | None, typer.Option(metavar="Q,...", help=_QUALITIES)] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="N,...", help="also decode from the first codes alone: so many of a row, levels or scales of it"
        ),
    ] = None,
    examples: Annotated[
        int, typer.Option(min=0, help="how many images the page shows, evenly spread over the data")
    ] = 8,
    batch_size: common.BatchSize = 8,
    as_json: common.AsJson = False,
    *,
    judging: groups.Judging,
    reading: groups.Reading,
    computing: groups.Computing,
) -> None:
    """Compare tokenizers with each other and with JPEG, WebP and AVIF: a table, a plot, one page of images."""
    from tokenizers_vq import evaluation
    from tokenizers_vq.verbs.compare import compare as measure

    options = {**judging._asdict(), **reading._asdict(), **computing._asdict()}
    result = measure(
        models,
        data,
        out,
        size=size,
        codecs=_choose_qualities(codecs, {"jpeg": jpeg, "webp": webp, "avif": avif}),
        keep=_lengths(keep or ""),
        examples=examples,
        batch_size=batch_size,
        progress=common.progress("compared"),
        **options,
    )
    page = out / "compare.html"
    if as_json:
        common.print_json({"page": page, **result.to_dict()})
    else:
        evaluation.print_comparison(result)
        print(page)


def _choose_qualities(codecs: str, given: dict[str, str | None]) -> dict[str, Sequence[int]]:
    from tokenizers_vq.config import nearest
    from tokenizers_vq.evaluation.codecs import QUALITIES

    chosen = [] if codecs == "none" else [name.strip().lower() for name in codecs.split(",") if name.strip()]
    for name in chosen:
        if name not in QUALITIES:
            raise ValueError(f"--codecs: no codec '{name}'{nearest(name, (*QUALITIES, 'none'))}")
    for name, text in given.items():
        if text is not None and name not in chosen:
            raise ValueError(f"--{name}: --codecs {codecs} leaves it out")
    return {name: QUALITIES[name] if given[name] is None else _numbers(name, str(given[name])) for name in chosen}


def _lengths(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if bad := next((part for part in parts if not part.isdecimal() or int(part) < 1), None):
        raise ValueError(f"--keep: '{bad}' is no number of codes; give whole numbers from 1 on, such as 8,16,32")
    return [int(part) for part in parts]


def _numbers(name: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if bad := next((part for part in parts if not part.isdecimal() or int(part) > 100), None):
        raise ValueError(f"--{name}: '{bad}' is not a quality; give whole numbers up to 100, such as 5,20,50")
    return [int(part) for part in parts]
