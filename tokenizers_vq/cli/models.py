"""`tvq models`."""

from __future__ import annotations


def models() -> None:
    """List the names that `create` (presets, untrained) and `load` (shipped, trained) take."""
    from tokenizers_vq.cli.common import list_names
    from tokenizers_vq.tokenizer import PRESETS, WEIGHTS, list_models

    list_names("presets, untrained, for create(NAME):", {name: PRESETS / f"{name}.yaml" for name in list_models()})
    shipped = {name: WEIGHTS / name / "README.md" for name in list_models("shipped")}
    if shipped:
        list_names("trained, for load(NAME) and every verb:", shipped)
