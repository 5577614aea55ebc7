"""`tvq-prior score`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenizers_vq.cli import common

if TYPE_CHECKING:
    from prior.scoring import Measured


def score(
    model: common.Model,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[CODES|IMAGES]",
            help="folder of codes, or of images; unset: the codes that the run held out",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write")] = None,
    as_json: common.AsJson = False,
    bits: Annotated[bool, typer.Option("--bits", help="also bit by bit, for codes that are bits (lfq, bsq)")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="use only this many images, evenly spread (of images, not of codes)")
    ] = None,
    batch_size: common.BatchSize = 32,
    device: common.Device = "auto",
) -> None:
    """Measure how well a prior predicts codes: bits a code and a pixel, top-1 accuracy, by level, scale or bit."""
    import json

    from rich.console import Console
    from rich.table import Table

    from prior import scoring
    from tokenizers_vq.folders import write_atomically
    from tokenizers_vq.text import cell

    found = scoring.score(model, source, by_bit=bits, limit=limit, device=device, batch_size=batch_size)
    result = {"model": model, "source": source, **found.to_dict()}
    if out is not None:
        write_atomically(out, json.dumps(result, indent=2) + "\n")
        common.note(f"wrote {out}")
    if as_json:
        common.print_json(result)
        return
    title = cell(f"{model}, {found.images:,} images")
    table = Table("what", "value", "top-1", "how", title=title, title_justify="left")
    for line in _lines(found):
        table.add_row(*line)
    Console().print(table)
    print(found.words())


def _lines(found: Measured) -> list[tuple[str, str, str, str]]:
    per_image = found.tokens // found.images
    what = "cross-entropy" if found.exact else "at most: a bound of the cross-entropy"
    right = "" if found.accuracy is None else f"{found.accuracy:.1%}"
    lines = [
        ("Prior", f"{found.bits_per_token:.3f}", right, f"{what}, bits per token"),
        ("Prior, an image", f"{found.bits_per_token * per_image:.3f}", "", f"bits, {per_image} tokens"),
    ]
    if found.bits_per_pixel is not None:
        lines.append(("Prior, a pixel", f"{found.bits_per_pixel:.4f}", "", "bits"))
    for row in found.rows:
        each = "bits per token" if not row.name.startswith("bit") else "bits"
        lines.append((f"Prior, {row.name}", f"{row.bits:.3f}", f"{row.accuracy:.1%}", f"{each}, {row.codes} an image"))
    if found.unigram is not None:
        how = "bits per token, by the frequencies of the training codes"
        lines.append(("Unigram", f"{found.unigram:.3f}", "", how))
    for stream, entropy in enumerate(found.entropies):
        which = f", stream {stream}" if len(found.entropies) > 1 else ""
        lines.append((f"Entropy{which}", f"{entropy:.3f}", "", "bits per token, by the frequencies of these codes"))
    return lines
