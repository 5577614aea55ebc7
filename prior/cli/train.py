"""`tvq-prior train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenizers_vq.cli import common


def train(
    recipe: Annotated[str, typer.Argument(help="a name from `tvq-prior models`, or a YAML file")],
    codes: Annotated[
        str, typer.Argument(help="folder of codes that `tvq encode` wrote; or images, together with --tokenizer")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH=VALUE]...", help="fields to set, such as steps=3000")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder of the run; an existing run is resumed")] = ...,  # type: ignore[assignment]
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="RUN|MODEL", help="what encodes the images; for codes: their tokenizer, if it has moved"),
    ] = None,
    init_from: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="start from this prior's weights; the layers that know codes are new for another tokenizer",
        ),
    ] = None,
    device: common.Device = "auto",
) -> None:
    """Train a prior on codes, or resume a run; reports bits per token on held-out codes at the end.

    Images are augmented and encoded as it trains (`data.crop`, `data.flip`), beside the stored codes of their centres.
    """
    from prior.recipe import load_recipe
    from prior.training import train as run
    from tokenizers_vq.data.shards import INFO
    from tokenizers_vq.devices import processes
    from tokenizers_vq.training.loop import Interrupted

    images = not (Path(codes) / INFO).is_file()
    if images and tokenizer is None:
        raise FileNotFoundError(
            f"{codes} holds no {INFO}: it is not a folder of codes; `tvq encode` makes one, or give --tokenizer to "
            "train on images"
        )
    found = load_recipe(recipe, out / "codes" if images else codes, overrides or [], codes if images else None)
    found = found if tokenizer is None else found.replace(tokenizer=tokenizer)
    try:
        with common.shown_runs():
            measured = run(found, out, device=device, init_from=init_from)
    except Interrupted as stop:
        common.note(f"tvq-prior: {stop}")
        raise typer.Exit(128 + stop.signal) from None
    if processes().rank == 0:
        print(measured.words())
