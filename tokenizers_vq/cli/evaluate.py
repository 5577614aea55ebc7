"""`tvq evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenizers_vq.cli import common, groups


def evaluate(
    model: common.Model,
    data: Annotated[str | None, typer.Option(help="images; unset: the test split of the run's data")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write")] = None,
    fid: Annotated[bool, typer.Option("--fid", help="also FID, with Inception's weights")] = False,
    batch_size: common.BatchSize = 32,
    *,
    judging: groups.Judging,
    reading: groups.Reading,
    computing: groups.Computing,
) -> None:
    """Measure a tokenizer on a whole split: reconstruction, use of the codes, bits."""
    from tokenizers_vq import evaluation
    from tokenizers_vq.data.loading import evaluation_batches
    from tokenizers_vq.devices import join_processes

    options = judging.options()
    config = common.choose_data(data, model, **reading._asdict())
    encoder = common.open_encoder(model, *computing)
    batches = evaluation_batches(
        config,
        image_size=encoder.image_size,
        channels=encoder.channels,
        batch_size=batch_size,
        shard=(processes := join_processes(encoder.device)),
    )
    described = common.describe(config, batches)
    result = evaluation.evaluate(
        encoder.tokenizer,
        common.told(batches, "evaluated"),
        data=described,
        fid=fid,
        autocast=encoder.autocast,
        **options,
    )
    common.name_broken(batches.broken)
    if processes.rank == 0:
        evaluation.print_table(result, f"{model} on {config.path}")
        if out is not None:
            result.save(out)
            common.note(f"wrote {out}")
