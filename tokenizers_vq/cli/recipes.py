"""`tvq recipes`."""

from __future__ import annotations


def recipes() -> None:
    """List the names that `tvq train` takes; it also takes a YAML file."""
    from tokenizers_vq.cli.common import list_names
    from tokenizers_vq.training.recipe import RECIPES, list_recipes

    list_names("recipes, for tvq train NAME:", {name: RECIPES / f"{name}.yaml" for name in list_recipes()})
