"""`tvq decode`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenizers_vq.cli import common, groups


def decode(
    codes: Annotated[Path, typer.Argument(help="folder that `tvq encode` wrote")],
    out: Annotated[Path, typer.Option(help="folder for the pictures or arrays")],
    tokenizer: Annotated[str | None, typer.Option(metavar="RUN|MODEL", help="the tokenizer, if it has moved")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="decode only this many, from the first on")] = None,
    batch_size: common.BatchSize = 32,
    tile: Annotated[
        str,
        typer.Option(
            metavar="auto|none|PIXELS", help="side of overlapping tiles for large images; auto: where it pays"
        ),
    ] = "auto",
    *,
    computing: groups.Computing,
) -> None:
    """Decode shards of codes: one PNG for each row, named after its image (.npy where the data were arrays)."""
    import numpy as np

    from tokenizers_vq.data.shards import read_codes
    from tokenizers_vq.encoding import BatchEncoder

    shards = read_codes(codes)
    name = tokenizer or shards.tokenizer
    if name is None:
        raise ValueError(f"{codes} does not say which tokenizer made it: give --tokenizer")
    size = shards.info["image_size"]
    try:
        encoder = BatchEncoder(
            name,
            device=computing.device,
            precision=computing.precision,
            image_size=tuple(size) if isinstance(size, list) else size,
            tile=None if tile == "none" else int(tile) if tile.isdecimal() else tile,  # type: ignore[arg-type]
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the tokenizer of {codes}: {error}; say where it is now with --tokenizer") from None
    if encoder.fingerprint != shards.fingerprint:
        raise ValueError(
            f"{codes} holds codes of another tokenizer ({shards.fingerprint[:12]}) than {name} "
            f"({encoder.fingerprint[:12]}): give its own with --tokenizer"
        )
    count = len(shards) if limit is None else min(limit, len(shards))
    span = shards.info["data"]["range"]
    arrays = span is not None or encoder.channels not in (1, 3)
    names = common.file_names(shards.names_of(np.arange(count)), ".npy" if arrays else ".png")
    for first in range(0, count, batch_size):
        decoded = encoder.decode(shards[first : min(first + batch_size, count)])
        for image, file in zip(decoded, names[first:], strict=False):
            if arrays:
                common.write_npy(out / file, image, tuple(span or (0.0, 1.0)))
            else:
                common.write_png(out / file, image)
    print(f"{count} {'images' if shards.info['views'] == 'center' else 'views'}: {out}")
