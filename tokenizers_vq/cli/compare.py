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
        list[str], typer.Argument(metavar="MODEL...", help="runs, saved folders, shipped names or owner/name")
    ],
    data: Annotated[str, typer.Option(help="folder of images, parquet or webdataset files, or owner/name of the Hub")],
    out: Annotated[Path, typer.Option(help="folder for compare.html, compare.json, table.md and the plot")],
    size: Annotated[int, typer.Option(min=1, help="side of the images; below 256 the codecs' headers dominate")] = 256,
    codecs: Annotated[str, typer.Option(metavar="NAME,...|none", help="image codecs")] = "jpeg,webp,avif",
    jpeg: Annotated[str | None, typer.Option(metavar="Q,...", help=_QUALITIES)] = None,
    webp: Annotated[str | None, typer.Option(metavar="Q,...", help=_QUALITIES)] = None,
    avif: Annotated[str | None, typer.Option(metavar="Q,...", help=_QUALITIES)] = None,
    examples: Annotated[int, typer.Option(min=0, help="images on the page, evenly spread over the data")] = 8,
    batch_size: common.BatchSize = 8,
    *,
    judging: groups.Judging,
    reading: groups.Reading,
    computing: groups.Computing,
) -> None:
    """Set tokenizers beside each other and beside JPEG, WebP and AVIF: a table, a plot, one page of images."""
    from tokenizers_vq import evaluation
    from tokenizers_vq.data.loading import evaluation_batches
    from tokenizers_vq.evaluation.codecs import TokenizerCodec, pillow_codecs

    options = judging.options()
    qualities = _choose_qualities(codecs, {"jpeg": jpeg, "webp": webp, "avif": avif})
    config = common.choose_data(data, models[0], **reading._asdict())
    tokenizers = []
    for model, name in zip(models, names(models), strict=True):
        encoder = common.open_encoder(model, *computing)
        tokenizers.append(TokenizerCodec(encoder.tokenizer, name, encoder.autocast))
        tokenizers[-1].layout(size, size)  # said now, not after an hour
    channels = tokenizers[0].channels
    if other := next((codec for codec in tokenizers if codec.channels != channels), None):
        raise ValueError(
            f"{tokenizers[0].name} takes images of {channels} channels, {other.name} of {other.channels}: "
            "compare them one by one"
        )
    pillow, left_out = pillow_codecs(qualities, channels)
    batches = evaluation_batches(config, image_size=size, channels=channels, batch_size=batch_size)
    result = evaluation.compare(
        [*tokenizers, *pillow],
        common.told(batches, "compared"),
        data=common.describe(config, batches),
        count=None if batches.source is None else len(batches.source),
        left_out=left_out,
        examples=examples,
        **options,
    )
    common.name_broken(batches.broken)
    page = evaluation.write_comparison(result, out, title=" · ".join(codec.name for codec in tokenizers))
    evaluation.print_comparison(result)
    print(page)


def names(models: Sequence[str]) -> list[str]:
    """A short name for each model, no two alike: its folder's, else as much of the path as tells it apart."""
    paths = [Path(model).parts for model in models]
    parts = [path[:-1] if len(path) > 1 and path[-1] == "model" else path for path in paths]
    found: list[str] = []
    for index, path in enumerate(parts):
        others = [other for number, other in enumerate(parts) if number != index and other != path]
        depth = next((n for n in range(1, len(path)) if all(other[-n:] != path[-n:] for other in others)), len(path))
        name, number = "/".join(path[-depth:]), 1
        while name in found:
            number += 1
            name = f"{'/'.join(path[-depth:])} ({number})"
        found.append(name)
    return found


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


def _numbers(name: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if bad := next((part for part in parts if not part.isdecimal() or int(part) > 100), None):
        raise ValueError(f"--{name}: '{bad}' is no quality; give whole numbers up to 100, such as 5,20,50")
    return [int(part) for part in parts]
