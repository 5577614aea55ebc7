"""`tvq models`."""

from __future__ import annotations

from tokenizers_vq.cli import common


def models(as_json: common.AsJson = False) -> None:
    """List all model names: presets (untrained), shipped and published ones (trained)."""
    from tokenizers_vq.conversion import catalogue
    from tokenizers_vq.models import PRESETS, list_models
    from tokenizers_vq.tokenizer import WEIGHTS

    presets = {name: PRESETS / f"{name}.yaml" for name in list_models()}
    shipped = {name: WEIGHTS / name / "README.md" for name in list_models("shipped")}
    if as_json:
        listed = {name: published.about for name, published in catalogue.entries().items()}
        common.print_json({"preset": common.abouts(presets), "shipped": common.abouts(shipped), "published": listed})
        return
    common.list_names("presets, untrained, for create(NAME):", presets)
    if shipped:
        common.list_names("trained, for load(NAME) and every verb:", shipped)
    print("published, for load(NAME) and every verb; * fetched by hand, see tvq info NAME:")
    entries = catalogue.entries()
    width = max(map(len, entries)) + 1
    for name, published in entries.items():
        mark = "*" if published.hub is None and not catalogue.converted(name).is_dir() else ""
        grids, codes = catalogue.grid_texts(published), published.codes
        shape = f"{grids[0]} to {grids[-1]}" if len(grids) > 2 else "+".join(grids)
        facts = ", ".join(
            filter(None, [shape and f"{shape} codes" + (f" of {codes:,}" if codes else ""), published.about])
        )
        print(f"  {name + mark:{width}}  {facts}")
