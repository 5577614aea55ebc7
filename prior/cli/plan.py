"""`tvq-prior plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenizers_vq.cli import common
from tokenizers_vq.cli.plan import Gpus, Memory, Overrides, Utilisation, print_estimate

Fsdp = Annotated[bool, typer.Option("--fsdp", help="weights, gradients, optimizer and average are shared out")]


def plan(
    recipe: Annotated[str, typer.Argument(help="a name from `tvq-prior models`, or a YAML file")],
    tokenizer: Annotated[
        str, typer.Argument(metavar="TOKENIZER", help="whose codes: a preset, run, folder, shipped or published name")
    ],
    overrides: Overrides = None,
    classes: Annotated[int, typer.Option(min=1, help="classes, where the codes would tell how many")] = 1000,
    gpus: Gpus = 1,
    memory: Memory = 80.0,
    fsdp: Fsdp = False,
    utilisation: Utilisation = 0.35,
    as_json: common.AsJson = False,
) -> None:
    """Say what a recipe takes before it runs: parameters, memory, the batch that fits, days; an estimate."""
    from prior.planning import plan as estimate

    found = estimate(
        recipe,
        tokenizer,
        overrides or (),
        classes=classes,
        gpus=gpus,
        memory=memory,
        fsdp=fsdp,
        utilisation=utilisation,
    )
    print_estimate(recipe, found, as_json)
