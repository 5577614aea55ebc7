"""`tvq recipes`."""

from __future__ import annotations

from typing import Annotated

import typer


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="print it, every field with its help")] = None,
) -> None:
    """List the names that `tvq train` takes, or print one as a file to change; it also takes a YAML file."""
    from tokenizers_vq.cli.common import list_names
    from tokenizers_vq.fields import commented
    from tokenizers_vq.training.recipe import RECIPES, list_recipes, load_recipe, read_recipe

    if name is None:
        list_names("recipes, for tvq train NAME:", {name: RECIPES / f"{name}.yaml" for name in list_recipes()})
        return
    path = RECIPES / f"{name}.yaml"
    given = read_recipe(path, RECIPES) if path.is_file() else {}
    recipe = load_recipe(name, [] if "data" in given or not path.is_file() else ["data=PATH"])
    print(commented(recipe), end="")
