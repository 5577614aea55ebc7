"""`tvq-prior inpaint`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenizers_vq.cli import common

if TYPE_CHECKING:
    from torch import Tensor


def inpaint(
    model: common.Model,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="the picture")],
    mask: Annotated[Path, typer.Argument(metavar="MASK", help="a picture of its size, white where it is drawn anew")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[FIELD=VALUE]...", help="fields of the sampler, such as steps=16")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="X.png: what was given and what was drawn; or a folder for both, apart")
    ] = ...,  # type: ignore[assignment]
    count: Annotated[int, typer.Option(min=1, help="how many times it is drawn")] = 4,
    classes: Annotated[
        str | None, typer.Option("--class", help="what it shows, for a prior that is told a class; unset: not said")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="what it shows, for a prior that is told a text; others by their names")
    ] = None,
    ring: Annotated[
        int | None, typer.Option(min=0, help="codes around the masked ones that are drawn too; unset: as many as leak")
    ] = None,
    keep_pixels: Annotated[
        bool, typer.Option("--keep-pixels", help="leave the picture's own pixels outside the mask")
    ] = False,
    temperature: Annotated[float, typer.Option(help="divides the logits; 0 takes the likeliest code")] = 1.0,
    guidance: Annotated[float, typer.Option(help="classifier-free guidance towards the class; 1 = off")] = 1.0,
    seed: Annotated[int, typer.Option(help="same seed, same images")] = 0,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="RUN|MODEL", help="where the tokenizer is now; must be the prior's own")
    ] = None,
    device: common.Device = "auto",
) -> None:
    """Draw the masked pixels of a picture anew, from the codes of the others."""
    import torch

    from prior import inpainting
    from prior.cli import told
    from prior.cli.opening import open_priors
    from prior.model import Prior
    from prior.sampling import Sampler

    opened = open_priors([model], tokenizer, device)
    prior = opened.prior
    assert isinstance(prior, Prior)
    fields, asked = told.split(settings or ())
    asked |= {name: [given] for name, given in {"text": text, "class": classes}.items() if given}
    condition = told.rows(prior.condition, asked, count, OPTIONS) if asked else None
    plain = Sampler(temperature=temperature, guidance=guidance, seed=seed)
    sampler = opened.sampler(plain, fields)
    picture, masked = _read(image, mask, opened.tokenizer.config.size, opened.tokenizer.config.channels)
    common.show_notes("prior.networks.autoregressive")
    if not prior.network.masked:
        common.note(
            "this prior draws codes in order, each given those before it alone; a masked one would use them all"
        )
    found = inpainting.inpaint(
        prior, opened.tokenizer, picture, masked, count, condition, sampler, ring=ring, keep_pixels=keep_pixels
    )
    drawn = f"{int(found.drawn.sum())} of {len(found.drawn)} codes drawn anew"
    _write(out, picture, torch.where(masked, torch.zeros(()), picture), found.images)
    print(f"{drawn}, {count} times: {out}")


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


def _read(image: Path, mask: Path, size: tuple[int, int], channels: int) -> tuple[Tensor, Tensor]:
    """The picture `(1, C, H, W)` and its mask bool `(H, W)`, in the tokenizer's size.

    Raises `ValueError` where they are not of one size: cut and resized alike they have to stay beside each other.
    """
    from prior.inpainting import read_mask
    from tokenizers_vq import images

    apart = [images.read(path, channels=1).shape[-2:] for path in (image, mask)]
    if apart[0] != apart[1]:
        sizes = ["x".join(map(str, (shape[1], shape[0]))) for shape in apart]
        raise ValueError(f"{mask} is {sizes[1]} pixels, {image} {sizes[0]}: a mask has the size of its picture")
    return images.read(image, channels=channels, size=size), read_mask(mask, size)
