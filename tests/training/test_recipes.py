"""The recipes that come with the package."""

from __future__ import annotations

from tokenizers_vq.training.recipe import load_recipe


def test_the_published_vit_vqgans_are_trained_alike() -> None:
    base, *others = (load_recipe(f"vit-vqgan-{size}", ["data=photos"]).to_dict() for size in ("base", "small", "large"))
    assert base["losses"] and base["adversary"]["discriminator"]["kind"] == "stylegan2"
    for other in others:
        assert other.pop("model") != base["model"]
        assert other == {name: value for name, value in base.items() if name != "model"}
