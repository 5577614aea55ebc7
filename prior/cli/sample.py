"""`tvq-prior sample`."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from prior.cli import options
from prior.cli.opening import Opened, open_priors
from tokenizers_vq.cli import common

if TYPE_CHECKING:
    from torch import Tensor

    from prior.choosing import Judge
    from prior.sampling import Sampler


CHOICE = "The best of several"


def sample(
    model: common.Model,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]... [FIELD=VALUE]... [--NAME VALUE]...",
            help="further priors, of finer grids, which are told the codes of those before them; more fields of the "
            "sampler, such as guidance_schedule=cosine (`tvq-prior fields sampler` shows them); and what else the "
            "prior is told, by its name, such as --style noto",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="folder for PNG files, grid.png and samples.json; or X.png for the grid alone")
    ] = ...,  # type: ignore[assignment]
    grid: Annotated[
        str | None,
        typer.Option(
            metavar="ROWSxCOLUMNS",
            help="rows x columns of the grid, and so how many images; unset: 4x8",
            rich_help_panel=options.WHAT,
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="how many images, in place of --grid", rich_help_panel=options.WHAT)
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--classes",
            "--class",
            help="classes by number or name, such as 0,3,cat, one after the other in the grid; unset: all",
            rich_help_panel=options.WHAT,
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="what to draw, for a prior that takes a text; may be given several times", rich_help_panel=options.WHAT
        ),
    ] = None,
    temperature: options.Temperature = 1.0,
    top_k: Annotated[
        int | None, typer.Option(help="draw only from the k likeliest codes", rich_help_panel=options.HOW)
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="draw only from the likeliest codes whose probabilities add up to p", rich_help_panel=options.HOW
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            help="draw only codes that are at least this many times as likely as the likeliest",
            rich_help_panel=options.HOW,
        ),
    ] = None,
    guidance: options.Guidance = 1.0,
    seed: options.Seed = 0,
    best_of: Annotated[
        int,
        typer.Option(min=1, help="draw this many candidates for each image and keep the best", rich_help_panel=CHOICE),
    ] = 1,
    judge: Annotated[
        str | None,
        typer.Option(
            help="what chooses the best: classifier:NAME (timm), clip:FOLDER, discriminator or discriminator:RUN",
            rich_help_panel=CHOICE,
        ),
    ] = None,
    judge_classes: Annotated[
        str | None,
        typer.Option(
            help="the classifier's numbers for the prior's classes, in their order, such as 1,11,340",
            rich_help_panel=CHOICE,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="RUN|MODEL", help="the tokenizer, if it has moved; only the one of the prior itself fits"),
    ] = None,
    codes: Annotated[bool, typer.Option("--codes", help="write the codes into samples.json, too")] = False,
    batch_size: common.BatchSize = 32,
    device: common.Device = "auto",
) -> None:
    """Draw new images."""
    from prior.cli import told
    from prior.sampling import Sampler

    total, columns = _size(grid, count)
    alone = out.suffix.lower() == ".png"
    if alone and codes:
        raise ValueError(f"--codes: {out} is a picture, which keeps none: give --out FOLDER")
    plain = Sampler(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, guidance=guidance, seed=seed)
    # The model among them: an option of the prior's own may stand before it.
    fields, asked = told.split([model, *(settings or ())])
    models = [field for field in fields if "=" not in field]
    fields = [field for field in fields if "=" in field]
    if not models:
        raise ValueError(f"give the prior to draw with, before or behind {model}")
    opened = open_priors(models, tokenizer, device)
    asked |= {name: list(given) for name, given in {"text": text, "class": classes}.items() if given}
    opened = opened._replace(told=told.rows(opened.condition, asked, total, OPTIONS))
    sampler = opened.sampler(plain, fields)
    common.show_notes("prior.networks.autoregressive")
    chosen = _choice(opened, best_of, judge, judge_classes)
    drawn = _draw(opened, sampler, total, batch_size, chosen)
    together = out if alone else out / "grid.png"
    _write_grid(together, drawn, min(columns, total))
    images = f"{total} image{'s' if total > 1 else ''}"
    if alone:
        print(f"{images}: {out}")
        return
    _write_folder(out, drawn, codes, {"sampler": sampler.to_dict(), "batch_size": batch_size})
    print(f"{images}: {out}, together: {together}")


OPTIONS = tuple(name.replace("_", "-") for name in inspect.signature(sample).parameters)
"""names of the options above"""


class _Drawn(NamedTuple):
    opened: Opened
    tokens: Tensor
    images: Tensor


class _Choice(NamedTuple):
    judge: Judge
    of: int


def _choice(opened: Opened, of: int, judge: str | None, classes: str | None) -> _Choice | None:
    """Who chooses among how many. Raises `ValueError` for one without the other."""
    from prior.choosing import open_judge
    from prior.model import Prior

    if judge is None and of == 1:
        return None
    if judge is None or of == 1:
        raise ValueError("--best-of and --judge go together: how many candidates, and who chooses among them")
    if not isinstance(opened.prior, Prior):
        raise ValueError("--best-of chooses among samples of one prior, and these are of a chain: leave it out")
    try:
        numbers = None if classes is None else [int(one) for one in classes.split(",")]
    except ValueError:
        raise ValueError(f"--judge-classes: '{classes}' is not a list of numbers, such as 1,11,340") from None
    return _Choice(open_judge(judge, opened.prior, opened.settings["tokenizer"], numbers), of)


def _draw(opened: Opened, sampler: Sampler, total: int, batch_size: int, choice: _Choice | None = None) -> _Drawn:
    import torch

    from prior.choosing import Best, best_of
    from prior.decoding import decode
    from prior.model import Prior

    chosen: list[Best] = []

    tokens, images = [], []
    for first in range(0, total, batch_size):
        n = min(batch_size, total - first)
        told = None if opened.told is None else opened.told[first : first + n]
        if choice is None:
            drawn = opened.prior.sample(n, told, sampler, first=first)
            decoded = decode(opened.tokenizer, opened.prior, drawn)
        else:
            assert isinstance(opened.prior, Prior)
            best = best_of(opened.prior, opened.tokenizer, choice.judge, n, choice.of, told, sampler, first=first)
            chosen.append(best)
            decoded, drawn = best.images, best.codes
        tokens.append(drawn.cpu())
        images.append(decoded)
        common.note(f"{first + n} of {total} images")
    if chosen:
        common.note(str(Best(images[0], tokens[0], torch.cat([best.scores for best in chosen]))))
    return _Drawn(opened, torch.cat(tokens), torch.cat(images))


def _write_grid(path: Path, drawn: _Drawn, columns: int) -> None:
    from prior.decoding import grid

    common.write_png(path, grid(drawn.images, columns))


def _write_folder(out: Path, drawn: _Drawn, codes: bool, settings: dict[str, Any]) -> None:
    """A PNG an image, and `samples.json` that says what each is and how it was drawn."""
    import json

    from tokenizers_vq.folders import write_atomically

    condition, told = drawn.opened.condition, drawn.opened.told
    entries = []
    for index, (image, row) in enumerate(zip(drawn.images, drawn.tokens, strict=True)):
        entry: dict[str, object] = {"file": f"{index:05d}.png"}
        if told is not None:
            entry |= condition.shown(told[index])
        if codes:
            entry["codes"] = row.tolist()
        entries.append(entry)
        common.write_png(out / f"{index:05d}.png", image)
    found = {**drawn.opened.settings, **settings, "images": entries}
    write_atomically(out / "samples.json", json.dumps(found, indent=2, ensure_ascii=False) + "\n")


def _size(grid: str | None, count: int | None) -> tuple[int, int]:
    """How many images, in how many columns. Raises `ValueError` for a grid that is none, and for both."""
    if grid is None:
        return count or 32, 8
    if count is not None:
        raise ValueError(f"--count {count} and --grid {grid} both say how many images: give one of them")
    found = re.fullmatch(r"([1-9]\d*)[xX]([1-9]\d*)", grid)
    if found is None:
        raise ValueError(f"--grid: '{grid}' is not of the form ROWSxCOLUMNS, for example 4x8")
    return int(found[1]) * int(found[2]), int(found[2])
