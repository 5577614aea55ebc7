"""`tvq recipes`."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenizers_vq.cli import common


def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="recipe to print, with every field explained")
    ] = None,
    as_json: common.AsJson = False,
) -> None:
    """List the recipes that `tvq train` takes, or print one as a YAML file to change."""
    from tokenizers_vq.fields import commented
    from tokenizers_vq.training.recipe import RECIPES, list_recipes, load_recipe, read_recipe

    if name is None:
        paths = {name: RECIPES / f"{name}.yaml" for name in list_recipes()}
        if as_json:
            common.print_json(common.abouts(paths))
        else:
            common.list_names("recipes, for tvq train NAME:", paths)
        return
    path = RECIPES / f"{name}.yaml"
    given = read_recipe(path, RECIPES) if path.is_file() else {}
    recipe = load_recipe(name, [] if "data" in given or not path.is_file() else ["data=PATH"])
    if as_json:
        common.print_json(recipe.to_dict())
    else:
        print(commented(recipe), end="")
