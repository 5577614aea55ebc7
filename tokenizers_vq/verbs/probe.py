"""How well a linear classifier tells classes apart by what a tokenizer makes of images."""

from __future__ import annotations

import logging

from typing_extensions import Unpack

from tokenizers_vq import evaluation
from tokenizers_vq.data.loading import evaluation_batches
from tokenizers_vq.evaluation.probe import NoClassesError, Probe
from tokenizers_vq.tokenizer import Tokenizer
from tokenizers_vq.training.discriminators import trained_discriminator
from tokenizers_vq.verbs.opening import Data, Model, choose_data, counted, describe, name_broken, open_encoder
from tokenizers_vq.verbs.options import Computing, Probing, Progress, Reading, split_options

MOST_IMAGES = 10_000
logger = logging.getLogger(__name__)


def probe(
    model: Model,
    data: Data | None = None,
    *,
    column: str | None = None,
    held_out: float = 0.25,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
    **options: Unpack[Probing],
) -> Probe:
    """Fit linear classifiers to pixels, features, codes and the discriminator, and measure them on held-out images.

    `data`: images with classes; None: the test split of what the run `model` was trained on. `column`: of the classes;
    None: the one that holds classes, or the sub-folders. `held_out`: share of each class that is held out. `seed`: of
    that draw, and of the untrained network beside. At most 10,000 images are read where `limit` is not given.
    `progress` is called with (images done, of how many); `options`: of `verbs.options.Reading` and `Computing`.

    Raises `ValueError` for no data, no classes, a single class, or too few images of each.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"--held-out is a share between 0 and 1, got {held_out:g}")
    reading, computing = split_options(options, Reading, Computing)
    config = choose_data(data, model, label_column=column, **reading)
    encoder = open_encoder(model, **computing)
    if isinstance(model, Tokenizer):
        discriminator, without = None, "a tokenizer itself has none beside it"
    else:
        discriminator, without = trained_discriminator(str(model))
    if discriminator is not None:
        discriminator.to(encoder.device)
    capped = config.limit is None
    config = config.replace(limit=MOST_IMAGES) if capped else config
    batches = evaluation_batches(
        config, image_size=encoder.image_size, channels=encoder.channels, batch_size=batch_size
    )
    described = describe(config, batches)
    if capped and batches.source is not None and len(batches.source) == MOST_IMAGES:
        logger.info("%s images are enough for most probes: --limit changes that", f"{MOST_IMAGES:,}")
    try:
        result = evaluation.probe(
            encoder.tokenizer,
            counted(batches, progress),
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
    name_broken(batches.broken)
    return result
