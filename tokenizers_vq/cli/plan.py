"""`tvq plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tokenizers_vq.cli import common

if TYPE_CHECKING:
    from tokenizers_vq.training.estimate import Estimate

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[PATH=VALUE]...", help="fields to set, such as batch_size=256")
]
Gpus = Annotated[int, typer.Option(min=1, help="GPUs")]
Memory = Annotated[float, typer.Option(min=0.1, help="GB of each")]
Utilisation = Annotated[float, typer.Option(min=0.01, max=1.0, help="share of a card's peak that a run reaches")]


def plan(
    recipe: Annotated[str, typer.Argument(help="a name from `tvq recipes`, or a YAML file")],
    overrides: Overrides = None,
    gpus: Gpus = 1,
    memory: Memory = 80.0,
    utilisation: Utilisation = 0.35,
    as_json: common.AsJson = False,
) -> None:
    """Say what a recipe takes before it runs: parameters, memory, the batch that fits, days; an estimate."""
    from tokenizers_vq.verbs.plan import plan as estimate

    found = estimate(recipe, *overrides or (), gpus=gpus, memory=memory, utilisation=utilisation)
    print_estimate(recipe, found, as_json)


def print_estimate(name: str, found: Estimate, as_json: bool) -> None:
    """The estimate as lines, or as one of JSON."""
    from tokenizers_vq.cli.info import print_rows
    from tokenizers_vq.training.estimate import CARDS, ROOM

    if as_json:
        common.print_json({"recipe": name, **found.to_dict()})
        return
    parts = ", ".join(f"{name} {_gb(count)}" for name, count in found.state._asdict().items())
    share = f"; shared out among {found.gpus}" if found.fsdp else ""
    verdict = "fits" if found.fits else "does not fit"
    advice = "" if found.fits else "; more `accumulate`, `gradient_checkpointing=true` or --gpus take less"
    cards = ", ".join(f"{card} {_days(found.days(card))}" for card in CARDS)
    rows = [
        ("parameters", ", ".join(f"{part} {count:,}" for part, count in found.parameters.items())),
        ("run", f"{found.steps:,} steps of {found.batch:,} images, {found.precision}"),
        ("stays on a GPU", f"{_gb(found.held)} ({parts}{share})"),
        ("comes and goes", f"{_gb(found.image)} an image, {_gb(found.besides)} besides"),
        (
            "the recipe's batch",
            f"{found.micro} images at once on each of {found.gpus}: {_gb(found.needed)} of {_gb(found.memory)}, "
            f"{verdict}{advice}",
        ),
        ("batch that fits", f"{found.largest:,} images at once on a GPU, which leaves {1 - ROOM:.0%} of it"),
        ("operations", f"{found.flops / 1e12:,.3g} TFLOP an image and step"),
        ("days", f"{cards} ({found.gpus} of them, at {found.utilisation:.0%} of their peak)"),
        *(("not counted", one) for one in found.left_out),
        ("", "an estimate from shapes: nothing was run; pictures, evaluation and reading data come on top"),
    ]
    print_rows(name, rows)


def _gb(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e7 else f"{count / 1e6:,.2f} MB"


def _days(days: float) -> str:
    return f"{days:,.1f}" if days >= 0.1 else f"{24 * days:,.2f} h" if days >= 0.004 else f"{1440 * days:,.1f} min"
