"""`tvq-prior models`."""

from __future__ import annotations

from tokenizers_vq.cli import common


def models(as_json: common.AsJson = False) -> None:
    """List all names of priors: recipes and presets to train, shipped and published ones (trained)."""
    from prior.conversion import catalogue
    from prior.model import WEIGHTS
    from prior.models import PRESETS, list_models
    from prior.recipe import RECIPES, list_recipes

    recipes = {name: RECIPES / f"{name}.yaml" for name in list_recipes()}
    presets = {name: PRESETS / f"{name}.yaml" for name in list_models()}
    shipped = {name: WEIGHTS / name / "README.md" for name in list_models("shipped")}
    if as_json:
        listed = {name: published.about for name, published in catalogue.entries().items()}
        named = {"recipe": recipes, "preset": presets, "shipped": shipped}
        common.print_json({**{kind: common.abouts(paths) for kind, paths in named.items()}, "published": listed})
        return
    common.list_names("recipes, for tvq-prior train NAME:", recipes)
    common.list_names("presets, untrained, for model=NAME and prior.create(NAME):", presets)
    if shipped:
        common.list_names("trained, for sample and score:", shipped)
    print("published, for sample and score; * fetched by hand, see tvq-prior info NAME:")
    entries = catalogue.entries()
    width = max(map(len, entries)) + 1
    for name, published in entries.items():
        mark = "*" if published.hub is None and not catalogue.converted(name).is_dir() else ""
        print(f"  {name + mark:{width}}  {published.about}; told {published.told}")
