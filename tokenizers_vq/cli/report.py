"""`tvq report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenizers_vq.cli import common


def report(
    model: common.Model,
    out: Annotated[Path, typer.Option(help="folder for report.html, report.json and pictures")],
    data: Annotated[str | None, typer.Option(help="images; unset: the test split of the run's data")] = None,
    lpips: common.Lpips = "auto",
    lpips_trunk: common.LpipsTrunk = None,
    backbone: common.Backbone = "tf_efficientnet_lite0",
    layer: common.Layer = "head",
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
    """Write one page on a tokenizer: how its codebook is used, what it reconstructs, how well."""
    from tokenizers_vq import evaluation
    from tokenizers_vq.data.loading import evaluation_batches

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
        config, image_size=encoder.image_size, channels=encoder.channels, batch_size=batch_size
    )
    described = common.describe(config, batches.source)
    page = evaluation.write_report(
        encoder.tokenizer,
        batches,
        out,
        title=f"Tokenizer {Path(model).name}",
        data_description=described.get("source", config.path),
        data=described,
        autocast=encoder.autocast,
        **options,
    )
    common.name_broken(batches.broken)
    print(page)
