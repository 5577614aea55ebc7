"""`tvq evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenizers_vq.cli import common, groups


def evaluate(
    model: common.Model,
    data: Annotated[
        str | None, typer.Option(help="images to measure on; unset: the test split of the run's data")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write")] = None,
    fid: Annotated[bool, typer.Option("--fid", help="also measure FID (needs Inception's weights)")] = False,
    keep: Annotated[
        int | None,
        typer.Option(min=1, help="decode from the first codes alone: so many of a row, levels or scales of it"),
    ] = None,
    batch_size: common.BatchSize = 32,
    as_json: common.AsJson = False,
    *,
    judging: groups.Judging,
    reading: groups.Reading,
    computing: groups.Computing,
) -> None:
    """Measure a tokenizer on a whole split: reconstruction, use of the codes, bits."""
    from tokenizers_vq import evaluation
    from tokenizers_vq.devices import processes
    from tokenizers_vq.verbs.evaluate import evaluate as measure

    options = {**judging._asdict(), **reading._asdict(), **computing._asdict()}
    options |= {"fid": fid, "keep": keep}
    result = measure(model, data, batch_size=batch_size, progress=common.progress("evaluated"), **options)
    if processes().rank:
        return
    if as_json:
        common.print_json(result.to_dict())
    else:
        evaluation.print_table(result, f"{model} on {result.data['name']}")
    if out is not None:
        result.save(out)
        common.note(f"wrote {out}")
