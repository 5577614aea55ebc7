"""`tvq-prior fields`."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenizers_vq.cli.fields import print_fields

Path_ = Annotated[
    str, typer.Argument(metavar="[PATH]", help="path in a recipe, such as model.network; unset: the whole recipe")
]


def fields(path: Path_ = "") -> None:
    """Show the fields of a prior's recipe or of a part of it: allowed values, default, meaning."""
    from prior.recipe import PriorRecipe

    print_fields(PriorRecipe, path)
