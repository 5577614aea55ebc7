"""`tvq evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenizers_vq.cli import common


def evaluate(
    model: common.Model,
    data: Annotated[str | None, typer.Option(help="images; unset: the test split of the run's data")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write")] = None,
    lpips: common.Lpips = "auto",
    lpips_trunk: common.LpipsTrunk = None,
    backbone: common.Backbone = "tf_efficientnet_lite0",
    layer: common.Layer = "head",
    fid: Annotated[bool, typer.Option("--fid", help="also FID, with Inception's weights")] = False,
    split: common.Split = None,
    image_column: common.ImageColumn = None,
    range: common.Range = None,
    streaming: common.Streaming = False,
    limit: common.Limit = None,
    workers: common.Workers = 2,
    on_broken: common.OnBroken = "skip",
    batch_size: common.BatchSize = 32,
    device: common.Device = "auto",
    precision: common.Precision = "auto",
) -> None:
    """Measure a tokenizer on a whole split: reconstruction, use of the codes, bits."""
    from tokenizers_vq import evaluation
    from tokenizers_vq.data.loading import evaluation_batches
    from tokenizers_vq.devices import join_processes

    options = common.metric_options(lpips, lpips_trunk, backbone, layer)
    config = common.choose_data(
        data,
        model,
        split=split,
        image_column=image_column,
        range=range,
        streaming=streaming,
        limit=limit,
        workers=workers,
        on_broken=on_broken,
    )
    encoder = common.open_encoder(model, device, precision)
    batches = evaluation_batches(
        config,
        image_size=encoder.image_size,
        channels=encoder.channels,
        batch_size=batch_size,
        shard=(processes := join_processes(encoder.device)),
    )
    described = common.describe(config, batches.source)
    result = evaluation.evaluate(
        encoder.tokenizer, batches, data=described, fid=fid, autocast=encoder.autocast, **options
    )
    common.name_broken(batches.broken)
    if processes.rank == 0:
        evaluation.print_table(result, f"{model} on {config.path}")
        if out is not None:
            result.save(out)
            common.note(f"wrote {out}")
