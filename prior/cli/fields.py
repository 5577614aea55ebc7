"""`tvq-prior fields`."""

from __future__ import annotations

from tokenizers_vq.cli.fields import Path_, print_fields


def fields(path: Path_ = "") -> None:
    """Show the fields of a prior's recipe, or of a part of it: what may be given, the default, what it does."""
    from prior.recipe import PriorRecipe

    print_fields(PriorRecipe, path)
