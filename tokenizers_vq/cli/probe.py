"""`tvq probe`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tokenizers_vq.cli import common, groups

MOST_IMAGES = 10_000


def probe(
    model: common.Model,
    data: Annotated[
        str | None, typer.Option(help="images with classes; unset: the test split of the run's data")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="column of the classes; unset: the one that holds classes, or the sub-folders")
    ] = None,
    held_out: Annotated[float, typer.Option(help="share of each class that is held out, and measured on")] = 0.25,
    seed: Annotated[int, typer.Option(min=0, help="of what is held out, and of the untrained network")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    batch_size: common.BatchSize = 32,
    *,
    reading: groups.Reading,
    computing: groups.Computing,
) -> None:
    """Say how well a linear classifier tells classes apart by pixels, features, codes and the discriminator."""
    from tokenizers_vq import evaluation
    from tokenizers_vq.data.loading import evaluation_batches
    from tokenizers_vq.evaluation.probe import NoClassesError
    from tokenizers_vq.training.discriminators import trained_discriminator

    if not 0 < held_out < 1:
        raise ValueError(f"--held-out is a share between 0 and 1, got {held_out:g}")
    config = common.choose_data(data, model, label_column=column, **reading._asdict())
    encoder = common.open_encoder(model, *computing)
    discriminator, without = trained_discriminator(model)
    if discriminator is not None:
        discriminator.to(encoder.device)
    capped = config.limit is None
    config = config.replace(limit=MOST_IMAGES) if capped else config
    batches = evaluation_batches(
        config, image_size=encoder.image_size, channels=encoder.channels, batch_size=batch_size
    )
    described = common.describe(config, batches)
    if capped and batches.source is not None and len(batches.source) == MOST_IMAGES:
        common.note(f"{MOST_IMAGES:,} images are enough for most probes: --limit changes that")
    try:
        result = evaluation.probe(
            encoder.tokenizer,
            common.told(batches, "encoded"),
            discriminator=discriminator,
            label_names=batches.label_names,
            data=described,
            held_out=held_out,
            seed=seed,
            autocast=encoder.autocast,
        )
    except NoClassesError as error:
        named = ", ".join(batches.columns)
        remedy = f"give --column, one of: {named}" if named else "put the images of each class into a folder of its own"
        raise ValueError(f"{config.path}: {error}: {remedy}") from None
    if discriminator is None:
        result.left_out["discriminator"] = without
    common.name_broken(batches.broken)
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        evaluation.print_probe(result, f"{model} on {config.path}")
    if out is not None:
        result.save(out)
        common.note(f"wrote {out}")
