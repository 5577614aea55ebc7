"""Recipes of priors: those that ship, their errors, the condition that they name."""

from __future__ import annotations

from pathlib import Path

import pytest

import prior
from prior.data import Data
from prior.recipe import list_recipes, load_recipe
from prior.training import configure
from tests.prior.conftest import SMALL
from tokenizers_vq.data.shards import read_codes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("gpt-tny",), "no recipe 'gpt-tny' of a prior; did you mean 'gpt-tiny'"),
        (("gpt-tiny", "codes", ["model=gpt-q"]), "model: no preset 'gpt-q' of a prior; did you mean"),
        (("gpt-tiny", "codes", ["model.network.layer=3"]), "model.network.layer: no such field; did you mean 'layers'"),
        (("gpt-tiny", "codes", ["held_out=0"]), "held_out: 0 leaves nothing to measure on"),
        (("gpt-tiny", "codes", ["accumulate=5"]), "accumulate: 5 does not divide"),
        (("gpt-tiny",), "codes: required"),
    ],
)
def test_errors_of_recipes(arguments: tuple, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        load_recipe(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name in list_recipes() if name != "demo"])
def test_recipes_that_ship(name: str) -> None:
    recipe = load_recipe(name, "codes")
    # Of MaskGIT and what 1d-tokenizer trains.
    late = {"maskgit", "maskbit", "titok-maskgit", "titok-uvit", "rar-b", "rar-l", "rar-xl", "rar-xxl"}
    assert recipe.optimizer.betas == (0.9, 0.96 if name in late else 0.95)
    kind = name.removeprefix("titok-").split("-")[0]
    assert recipe.model.network.kind == ("gpt" if kind in ("rar", "taming", "vim") else kind)
    assert recipe.model.label_dropout == 0.1


def test_a_condition_with_its_fields(codes: Path, write_codes, tmp_path: Path) -> None:
    def condition(folder: Path, *overrides: str):
        recipe = load_recipe("gpt-tiny", folder, [*SMALL, *overrides])
        return configure(recipe, Data(recipe)).condition

    told = condition(codes, "model.condition={kind: class, dropout: 0.5}")
    assert told.to_dict() == {
        "kind": "class",
        "name": None,
        "num_classes": 3,
        "dropout": 0.5,
        "label_names": ["cat", "dog", "fox"],
    }
    assert condition(codes, "model.condition={kind: class, num_classes: 10}").num_classes == 10
    assert condition(codes, "model.condition=class", "model.condition.dropout=0.5") == told
    with pytest.raises(ValueError, match=r"model\.condition\.lenght: no such field; did you mean 'length'"):
        condition(codes, "model.condition=text", "model.condition.lenght=8")
    with pytest.raises(ValueError, match=r"has class 2, model\.condition\.num_classes says 0 to 1"):
        condition(codes, "model.condition={kind: class, num_classes: 2}")
    with pytest.raises(ValueError, match=r"model\.condition\.kind: unknown kind 'clas'; did you mean 'class'"):
        condition(codes, "model.condition={kind: clas}")
    with pytest.raises(ValueError, match=r"model\.condition\.kind: unknown kind 'clas'; did you mean 'class'"):
        condition(codes, "model.condition=clas")
    with pytest.raises(ValueError, match=r"model\.condition: input should be a valid dictionary"):
        condition(codes, "model.condition=3")
    with pytest.raises(ValueError, match=r"condition\.num_classes: required"):
        prior.create("gpt-tiny", read_codes(codes).layout, {"kind": "class"})
