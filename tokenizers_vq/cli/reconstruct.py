"""`tvq reconstruct`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenizers_vq.cli import common, groups


def reconstruct(
    model: common.Model,
    data: Annotated[str, typer.Option(help="folder of images, parquet or webdataset files, or owner/name of the Hub")],
    out: Annotated[Path, typer.Option(help="folder for the pictures and grid.png")],
    count: Annotated[int, typer.Option(min=1, help="how many images, evenly spread over the data")] = 16,
    batch_size: common.BatchSize = 16,
    *,
    reading: groups.Reading,
    computing: groups.Computing,
) -> None:
    """Write images beside their reconstructions, and one grid of them all."""
    import torch
    from PIL import Image

    from tokenizers_vq.data import DataConfig
    from tokenizers_vq.data.loading import evaluation_batches
    from tokenizers_vq.evaluation.figures import display, image_png, reconstruction_grid
    from tokenizers_vq.folders import write_atomically
    from tokenizers_vq.verbs.opening import name_broken, open_encoder

    if reading.limit is not None:
        raise ValueError("--limit: here --count says how many images")
    unread = {"label_column": "none", "caption_column": "none"}
    config = DataConfig(**{"path": data, **unread, **reading._asdict(), "limit": count})
    encoder = open_encoder(model, *computing)
    batches = evaluation_batches(
        config, image_size=encoder.image_size, channels=encoder.channels, batch_size=batch_size
    )
    common.note(f"reading {batches.about.description}")
    pairs, keys = [], []
    for batch in batches:
        decoded = encoder.decode(encoder.encode(batch["images"]))
        pairs += list(zip(batch["images"], decoded, strict=True))
        keys += batch["keys"]
    name_broken(batches.broken)
    if not pairs:
        raise ValueError(f"{data}: none of {len(batches.broken)} images could be read")
    shown = [(display(image[None])[0], display(decoded[None])[0]) for image, decoded in pairs]
    for name, pair in zip(common.file_names(keys), shown, strict=True):
        write_atomically(out / name, image_png(Image.fromarray(torch.cat(pair, dim=1).numpy())))
    grid = reconstruction_grid(shown)
    write_atomically(out / "grid.png", image_png(grid))
    print(out / "grid.png")
