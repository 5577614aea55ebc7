"""`tvq-prior inpaint`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prior.cli import options
from tokenizers_vq.cli import common

if TYPE_CHECKING:
    from torch import Tensor


def inpaint(
    model: common.Model,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="the picture to fill in")],
    mask: Annotated[
        Path, typer.Argument(metavar="MASK", help="a picture of the same size, white where new pixels are wanted")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FIELD=VALUE]... [--NAME VALUE]...",
            help="fields of the sampler, such as steps=16 (`tvq-prior fields sampler` shows them); and what else the "
            "prior is told, by its name, such as --style noto",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="X.png for one sheet of what was given and drawn, or a folder for separate pictures")
    ] = ...,  # type: ignore[assignment]
    count: Annotated[int, typer.Option(min=1, help="how many ways to fill it in", rich_help_panel=options.WHAT)] = 4,
    classes: Annotated[
        str | None,
        typer.Option(
            "--class",
            help="class of the picture, for a prior that takes classes; unset: none",
            rich_help_panel=options.WHAT,
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help="what the picture shows, for a prior that takes a text", rich_help_panel=options.WHAT),
    ] = None,
    ring: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="how many codes around the masked ones are drawn too; unset: as many as see masked pixels",
            rich_help_panel=options.WHAT,
        ),
    ] = None,
    keep_pixels: Annotated[
        bool,
        typer.Option(
            "--keep-pixels", help="keep the picture's own pixels outside the mask", rich_help_panel=options.WHAT
        ),
    ] = False,
    temperature: options.Temperature = 1.0,
    guidance: options.Guidance = 1.0,
    seed: options.Seed = 0,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="RUN|MODEL", help="the tokenizer, if it has moved; only the one of the prior itself fits"),
    ] = None,
    device: common.Device = "auto",
) -> None:
    """Fill in the masked part of a picture."""
    import torch

    from prior import inpainting
    from prior.cli import told
    from prior.cli.opening import open_priors
    from prior.model import Prior
    from prior.sampling import Sampler

    # The three arguments among them: an option of the prior's own may stand before these.
    words, asked = told.split([model, str(image), str(mask), *(settings or ())])
    fields = [word for word in words if "=" in word]
    named = [word for word in words if "=" not in word]
    if len(named) != 3:
        raise ValueError(f"give a prior, a picture and a mask, got {' '.join(named) or 'none of them'}")
    opened = open_priors(named[:1], tokenizer, device)
    image, mask = Path(named[1]), Path(named[2])
    prior = opened.prior
    assert isinstance(prior, Prior)
    asked |= {name: [given] for name, given in {"text": text, "class": classes}.items() if given is not None}
    condition = told.rows(prior.condition, asked, count, OPTIONS) if asked else None
    plain = Sampler(temperature=temperature, guidance=guidance, seed=seed)
    sampler = opened.sampler(plain, fields)
    config = opened.tokenizer.config
    picture, masked = inpainting.read_masked(image, mask, config.size, config.channels)
    common.show_notes("prior.networks.autoregressive")
    if not prior.network.masked:
        common.note(f"this prior draws {prior.network.sees}; a masked one would use them all")
    found = inpainting.inpaint(
        prior, opened.tokenizer, picture, masked, count, condition, sampler, ring=ring, keep_pixels=keep_pixels
    )
    drawn = f"{int(found.drawn.sum())} of {len(found.drawn)} codes drawn anew"
    _write(out, picture, torch.where(masked, torch.zeros(()), picture), found.images)
    print(f"{drawn}, {'once' if count == 1 else f'{count} times'}: {out}")


OPTIONS = tuple(name.replace("_", "-") for name in inspect.signature(inpaint).parameters)
"""names of the options above"""


def _write(out: Path, picture: Tensor, given: Tensor, drawn: Tensor) -> None:
    """All in one picture, or what was drawn and what was given apart in a folder."""
    import torch

    from prior.decoding import grid

    if out.suffix.lower() == ".png":
        together = torch.cat((picture, given, drawn))
        common.write_png(out, grid(together, min(len(together), 8)))
        return
    for index, one in enumerate(drawn):
        common.write_png(out / f"{index:05d}.png", one)
    common.write_png(out / "given.png", given[0])
