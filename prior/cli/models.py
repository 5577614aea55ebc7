"""`tvq-prior models`."""

from __future__ import annotations


def models() -> None:
    """List the names that `train` takes (it also takes a YAML file), and trained priors, shipped and published."""
    from prior.conversion import catalogue
    from prior.model import WEIGHTS
    from prior.models import PRESETS, list_models
    from prior.recipe import RECIPES, list_recipes
    from tokenizers_vq.cli.common import list_names

    list_names("recipes, for tvq-prior train NAME:", {name: RECIPES / f"{name}.yaml" for name in list_recipes()})
    list_names(
        "presets, untrained, for model=NAME and prior.create(NAME):",
        {name: PRESETS / f"{name}.yaml" for name in list_models()},
    )
    shipped = list_models("shipped")
    if shipped:
        cards = {name: WEIGHTS / name / "README.md" for name in shipped}
        list_names("trained, for sample and score:", cards)
    print("published, for sample and score; * fetched by hand, see tvq-prior info NAME:")
    entries = catalogue.entries()
    width = max(map(len, entries)) + 1
    for name, published in entries.items():
        mark = "*" if published.hub is None and not catalogue.converted(name).is_dir() else ""
        print(f"  {name + mark:{width}}  {published.about}; told {published.told}")
