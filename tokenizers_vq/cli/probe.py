"""`tvq probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenizers_vq.cli import common, groups


def probe(
    model: common.Model,
    data: Annotated[
        str | None, typer.Option(help="images with classes; unset: the test split of the run's data")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="column of the classes; unset: the one that holds classes, or the sub-folders")
    ] = None,
    held_out: Annotated[float, typer.Option(help="share of each class that is held out to measure on")] = 0.25,
    seed: Annotated[
        int, typer.Option(min=0, help="decides which images are held out, and the weights of the untrained network")
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write")] = None,
    as_json: common.AsJson = False,
    batch_size: common.BatchSize = 32,
    *,
    reading: groups.Reading,
    computing: groups.Computing,
) -> None:
    """Measure how well a linear classifier tells classes apart from pixels, features, codes and the discriminator."""
    from tokenizers_vq import evaluation
    from tokenizers_vq.verbs.probe import probe as measure

    options = {**reading._asdict(), **computing._asdict()}
    result = measure(
        model,
        data,
        column=column,
        held_out=held_out,
        seed=seed,
        batch_size=batch_size,
        progress=common.progress("encoded"),
        **options,
    )
    if as_json:
        common.print_json(result.to_dict())
    else:
        evaluation.print_probe(result, f"{model} on {result.data['name']}")
    if out is not None:
        result.save(out)
        common.note(f"wrote {out}")
