"""`tvq-prior train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenizers_vq.cli import common


def train(
    recipe: Annotated[str, typer.Argument(help="a name from `tvq-prior models`, or a YAML file")],
    codes: Annotated[str, typer.Argument(help="folder of codes that `tvq encode` wrote")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH=VALUE]...", help="fields to set, such as steps=3000")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder of the run; one that is there goes on")] = ...,  # type: ignore[assignment]
    tokenizer: Annotated[
        str | None, typer.Option(metavar="RUN|MODEL", help="where the tokenizer is now; must be the codes' own")
    ] = None,
    init_from: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="begin with this prior's weights; codes of another tokenizer get new ones"),
    ] = None,
    device: common.Device = "auto",
) -> None:
    """Train a prior on codes, or go on with a run; ends with its bits per token on held-out codes."""
    from prior.recipe import load_recipe
    from prior.training import train as run
    from tokenizers_vq.training.loop import Interrupted

    found = load_recipe(recipe, codes, overrides or [])
    try:
        run(found if tokenizer is None else found.replace(tokenizer=tokenizer), out, device=device, init_from=init_from)
    except Interrupted as stop:
        common.note(f"tvq-prior: {stop}")
        raise typer.Exit(128 + stop.signal) from None
