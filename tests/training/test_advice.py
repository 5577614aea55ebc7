"""What is advised fits the quantizer that the recipe has, at every level."""

from __future__ import annotations

from tokenizers_vq.training.advice import against_collapse
from tokenizers_vq.training.recipe import load_recipe


def test_advice_is_for_every_level() -> None:
    recipe = load_recipe("vqvae2-f4", ["data=photos"])
    first = against_collapse(recipe)[0].overrides
    assert {f"model.quantizers.{level}.distance=cosine" for level in (0, 1)} < set(first)
    mended = load_recipe("vqvae2-f4", ["data=photos", *first])
    assert all(quantizer.dim == 8 for quantizer in mended.model.quantizer_paths.values())


def test_gumbel_codes_are_told_by_logits_not_by_where_they_lie() -> None:
    recipe = load_recipe("dvae-tiny-64", ["data=photos"])
    overrides = [override for advice in against_collapse(recipe) for override in advice.overrides]
    assert any(override.startswith("model.quantizer.kl_weight=") for override in overrides)
    assert not any("dim=" in override for override in overrides)
    load_recipe("dvae-tiny-64", ["data=photos", *overrides])


def test_codes_without_a_codebook_become_fewer() -> None:
    overrides = {
        recipe: [override for advice in against_collapse(load_recipe(recipe)) for override in advice.overrides]
        for recipe in ("fsq-tiny-64", "lfq-tiny-64")
    }
    assert overrides["fsq-tiny-64"] == ["model.quantizer.levels=[8, 5, 5]"]
    assert overrides["lfq-tiny-64"] == ["model.quantizer.bits=7"]
    for recipe, listed in overrides.items():
        load_recipe(recipe, listed).model.build()
