"""`tvq train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenizers_vq.cli import common


def train(
    recipe: Annotated[str, typer.Argument(help="a name from `tvq recipes`, or a YAML file")],
    out: Annotated[Path, typer.Option(help="folder of the run; an existing run is resumed")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH=VALUE]...", help="fields to set, such as data=photos/")
    ] = None,
    init_from: Annotated[
        str | None, typer.Option(metavar="MODEL", help="start from this model's weights, and its discriminator's")
    ] = None,
    device: common.Device = "auto",
) -> None:
    """Train a tokenizer by a recipe, or resume a run."""
    from tokenizers_vq.training.loop import Interrupted
    from tokenizers_vq.verbs.train import train as run

    try:
        with common.shown_runs():
            run(recipe, out, *overrides or (), init_from=init_from, device=device)
    except Interrupted as stop:
        common.note(f"tvq: {stop}")
        raise typer.Exit(128 + stop.signal) from None
