"""`tvq-prior convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenizers_vq.cli import common


def convert(
    source: Annotated[str, typer.Argument(help="whose format the weights are in, such as llamagen-gpt")],
    weights: Annotated[Path, typer.Argument(help="the published file or folder")],
    out: Annotated[Path, typer.Option(help="folder to write; only an earlier conversion may be overwritten")],
    config: Annotated[
        Path | None, typer.Option(help="its YAML or JSON config, needed where the weights do not say everything")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="RUN|MODEL", help="the tokenizer whose codes it models; no checkpoint says so itself"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="title of the model card; unset: the folder's name")] = None,
) -> None:
    """Convert a published checkpoint into a prior's folder; no code in the file is run."""
    from prior.conversion.write import convert_to_folder

    written = convert_to_folder(source, weights, config, out, tokenizer=tokenizer, name=name)
    made = written.prior
    grids = " + ".join("x".join(map(str, grid)) for grid in made.layout.grids)
    sizes = " / ".join(f"{size:,}" for size in dict.fromkeys(made.layout.sizes))
    parameters = sum(parameter.numel() for parameter in made.parameters())
    levels = f", {made.layout.levels} levels" if made.layout.levels > 1 else ""
    common.note(
        f"{made.config.network.kind}, {parameters:,} parameters; {made.layout.length} codes an image ({grids}{levels}) "
        f"of {sizes}; told {made.condition.noun or 'nothing'}"
    )
    for message in written.skipped:
        common.note(message)
    if tokenizer is None:
        common.note("no tokenizer is named, so that nothing can decode what it draws: convert again with --tokenizer")
    print(out)
