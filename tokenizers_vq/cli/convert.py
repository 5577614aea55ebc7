"""`tvq convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenizers_vq.cli import common


def convert(
    source: Annotated[str, typer.Argument(help="whose format the weights are in, such as taming or llamagen")],
    weights: Annotated[Path, typer.Argument(help="the published file or folder")],
    out: Annotated[Path, typer.Option(help="folder to write; only an earlier conversion may be overwritten")],
    config: Annotated[
        Path | None, typer.Option(help="its YAML or JSON config, needed where the weights do not say everything")
    ] = None,
    name: Annotated[str | None, typer.Option(help="title of the model card; unset: the folder's name")] = None,
) -> None:
    """Convert a published checkpoint into a tokenizer's folder; no code in the file is run."""
    from tokenizers_vq.conversion.write import convert_to_folder

    converted = convert_to_folder(source, weights, config, out, name=name)
    tokenizer = converted.tokenizer
    layout, size = tokenizer.code_layout(), "x".join(map(str, tokenizer.config.size))
    grids = " + ".join("x".join(map(str, grid)) for grid in layout.grids)
    sizes = " / ".join(f"{size:,}" for size in dict.fromkeys(layout.sizes))
    parameters = sum(parameter.numel() for parameter in tokenizer.parameters())
    levels = f", {layout.levels} levels" if layout.levels > 1 else ""
    common.note(f"{parameters:,} parameters; {size} pixels become {layout.length} codes ({grids}{levels}) of {sizes}")
    for message in converted.skipped:
        common.note(message)
    if converted.discriminator is not None:
        common.note(f"discriminator: {converted.discriminator}, in {out / 'discriminator'}")
    elif converted.left_out is not None:
        common.note(f"discriminator left out: {converted.left_out}")
    print(out)
