"""`tvq report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tokenizers_vq.cli import common, groups


def report(
    model: common.Model,
    out: Annotated[Path, typer.Option(help="folder for report.html, report.json and pictures")],
    data: Annotated[
        str | None, typer.Option(help="images to measure on; unset: the test split of the run's data")
    ] = None,
    batch_size: common.BatchSize = 32,
    as_json: common.AsJson = False,
    *,
    judging: groups.Judging,
    reading: groups.Reading,
    computing: groups.Computing,
) -> None:
    """Write one HTML page about a tokenizer: pictures, figures, and how its codebook is used."""
    from tokenizers_vq.verbs.report import report as write

    options = {**judging._asdict(), **reading._asdict(), **computing._asdict()}
    page = write(model, out, data, batch_size=batch_size, progress=common.progress("evaluated"), **options)
    if as_json:
        common.print_json({"page": page, **json.loads((out / "report.json").read_text(encoding="utf-8"))})
    else:
        print(page)
