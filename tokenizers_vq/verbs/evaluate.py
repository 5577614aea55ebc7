"""Measure a tokenizer on a whole split."""

from __future__ import annotations

from typing_extensions import Unpack

from tokenizers_vq import evaluation
from tokenizers_vq.data.loading import evaluation_batches
from tokenizers_vq.devices import join_processes
from tokenizers_vq.evaluation import Evaluation
from tokenizers_vq.evaluation.kept import Kept
from tokenizers_vq.verbs.opening import Data, Model, choose_data, counted, describe, name_broken, open_encoder
from tokenizers_vq.verbs.options import Computing, Judging, Measuring, Progress, Reading, choose_judges, split_options


def evaluate(
    model: Model,
    data: Data | None = None,
    *,
    fid: bool = False,
    keep: int | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
    **options: Unpack[Measuring],
) -> Evaluation:
    """Measure a tokenizer on a whole split: reconstruction, use of the codes, bits.

    `data`: images, or a `DataConfig`; None: the test split of what the run `model` was trained on. `fid`: also FID,
    with Inception's weights. `keep`: with only so many first codes of each image, as `CodeLayout.prefix` counts them.
    `progress` is called with (images done, of how many). `options`: of
    `verbs.options.Reading`, `Judging` and `Computing`, such as `split="test"`, `lpips="alex"`, `device="cpu"`.

    Under several processes each reads its share, and all get the result. Raises `ValueError` where there is no data or
    no image, and `TypeError` for an unknown option.

    ```python
    result = tvq.evaluate("runs/a", "photos-test/")
    result.metrics["psnr"].value, result.usage.streams[0].perplexity
    ```
    """
    reading, judging, computing = split_options(options, Reading, Judging, Computing)
    judges = choose_judges(**judging)
    config = choose_data(data, model, **reading)
    encoder = open_encoder(model, **computing)
    batches = evaluation_batches(
        config,
        image_size=encoder.image_size,
        channels=encoder.channels,
        batch_size=batch_size,
        shard=join_processes(encoder.device),
    )
    described = describe(config, batches)
    tokenizer = encoder.tokenizer if keep is None else Kept(encoder.tokenizer, keep)
    result = evaluation.evaluate(
        tokenizer, counted(batches, progress), data=described, fid=fid, autocast=encoder.autocast, **judges
    )
    name_broken(batches.broken)
    return result
