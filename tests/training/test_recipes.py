"""The recipes that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from prior.recipe import RECIPES as PRIOR_RECIPES
from tokenizers_vq.config import ConfigError, read_yaml
from tokenizers_vq.models import list_models
from tokenizers_vq.training.health import before_the_start
from tokenizers_vq.training.recipe import RECIPES, list_recipes, load_recipe


def spans(data: Any, where: str = "") -> dict[str, float]:
    """Every place of a recipe that names a step."""
    if isinstance(data, dict):
        found = {}
        for name, value in data.items():
            if name in ("start", "warmup") and isinstance(value, (int, float)) and not isinstance(value, bool):
                found[f"{where}.{name}"] = value
            elif name == "over":
                found |= {f"{where}.over.{i}": step for i, step in enumerate(value)}
            else:
                found |= spans(value, f"{where}.{name}")
        return found
    if isinstance(data, (list, tuple)):
        return {path: step for i, value in enumerate(data) for path, step in spans(value, f"{where}.{i}").items()}
    return {}


def test_the_published_vit_vqgans_are_trained_alike() -> None:
    base, *others = (load_recipe(f"vit-vqgan-{size}", ["data=photos"]).to_dict() for size in ("base", "small", "large"))
    assert base["losses"] and base["adversary"]["discriminator"]["kind"] == "stylegan2"
    for other in others:
        assert other.pop("model") != base["model"]
        assert other == {name: value for name, value in base.items() if name != "model"}


def test_every_preset_has_a_recipe() -> None:
    assert set(list_models("preset")) <= set(list_recipes())


@pytest.mark.parametrize("path", [*sorted(RECIPES.glob("*.yaml")), *sorted(PRIOR_RECIPES.glob("*.yaml"))], ids=str)
def test_spans_are_written_as_shares_of_the_run(path: Path) -> None:
    for where, step in spans(read_yaml(path)).items():
        assert isinstance(step, float) and 0 <= step <= 1, f"{where}: {step}"


@pytest.mark.parametrize("name", list_recipes())
def test_another_number_of_steps_scales_every_span(name: str) -> None:
    whole = load_recipe(name, ["data=photos"])
    tenth = load_recipe(name, ["data=photos", f"steps={whole.steps // 10}"])
    before, after = spans(whole.to_dict()), spans(tenth.to_dict())
    assert before.keys() == after.keys() and before_the_start(whole) == before_the_start(tenth) == []
    for where, step in before.items():
        assert after[where] == pytest.approx(step * tenth.steps / whole.steps, abs=1), where


@pytest.mark.parametrize("name", list_recipes())
def test_factors_are_of_losses_that_the_quantizer_has(name: str) -> None:
    recipe = load_recipe(name, ["data=photos"])
    if recipe.quantizer_losses:
        quantizer = recipe.model.quantizer.build()
        grid = getattr(recipe.model.quantizer, "grids", ((2, 2),))[-1]
        losses = quantizer.train()(torch.randn(1, quantizer.in_dim, *grid)).losses
        assert recipe.quantizer_losses.keys() <= losses.keys()


def test_vqgan_is_trained_as_published() -> None:
    """The published code's loss of a vector 2 away from its code: commitment at 1, codebook at 0.25."""
    recipe = load_recipe("vqgan-f16-16384", ["data=photos"])
    assert recipe.adversary is not None and recipe.adversary.start == 250001
    losses = recipe.model.quantizer.build().train()(torch.randn(1, 256, 4, 4)).losses
    commitment, codebook = (losses[name] * recipe.quantizer_losses[name] for name in ("commitment", "codebook"))
    assert torch.allclose(commitment, 4 * codebook) and torch.allclose(codebook, losses["codebook"] / 4)


@pytest.mark.parametrize(
    ("name", "epochs", "start"), [("llamagen-f8", 40, 20000), ("ibq-f16-16384", 330, 0), ("open-magvit2-f16", 270, 0)]
)
def test_published_steps_are_epochs_of_imagenet(name: str, epochs: int, start: int) -> None:
    recipe = load_recipe(name, ["data=photos"])
    assert recipe.steps == pytest.approx(epochs * 1_281_167 / recipe.batch_size, abs=epochs)
    assert recipe.adversary is not None and recipe.adversary.start == start


def test_a_recipe_begins_with_its_base(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: vqgan-tiny-64\nsteps: 60\nlosses: [{kind: l1}]\n")
    (tmp_path / "again.yaml").write_text("base: mine.yaml\nbatch_size: 4\n")
    base, recipe = load_recipe("vqgan-tiny-64"), load_recipe(tmp_path / "again.yaml")
    assert (recipe.steps, recipe.batch_size, [term.kind for term in recipe.losses]) == (60, 4, ["l1"])
    assert recipe.model == base.model and base.adversary is not None and recipe.adversary is not None
    assert recipe.adversary.discriminator == base.adversary.discriminator
    assert recipe.adversary.start == 14  # 0.2333 of 60
    (tmp_path / "mine.yaml").write_text("base: again.yaml\n")
    with pytest.raises(ConfigError, match=r"'again.yaml' begins with itself"):
        load_recipe(tmp_path / "again.yaml")
    (tmp_path / "mine.yaml").write_text("base: vqgan-tiny-46\n")
    with pytest.raises(ConfigError, match=r"mine.yaml: base: no recipe 'vqgan-tiny-46'; did you mean 'vqgan-tiny-64'"):
        load_recipe(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("adversary.start=3000", "no discriminator ever starts"),
        ("adversary.warmup=0.9", "the tokenizer never sees the discriminator"),
        ("optimizer.lr=0.0", "the learning rate is 0: optimizer.lr"),
        ("losses.0.weight=0.0", "the l1 loss has weight 0"),
    ],
)
def test_what_cannot_train_is_said_before_the_first_step(override: str, words: str) -> None:
    (line,) = before_the_start(load_recipe("vqgan-tiny-64", [override]))
    assert words in line and "try " in line and "\n" not in line


@pytest.mark.parametrize(
    "path", ["2012", "007", "1e3", "a #1", "[a]", "null", "yes", "2012-01-01", "a: b", "'q'", "- x", "é画", "caf\udce9"]
)
def test_paths_of_data_are_taken_as_they_are_written(path: str) -> None:
    for overrides in ([f"data={path}"], [f"data.path={path}"], [f"data.path={path}", "data.workers=0"]):
        assert load_recipe("demo", overrides).data.path == path
    assert load_recipe("demo", ["data={path: x, workers: 0}"]).data.workers == 0
