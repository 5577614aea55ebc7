"""What fields there are is told from the configs themselves."""

from __future__ import annotations

import pytest
import yaml

from tokenizers_vq.cli.common import progress
from tokenizers_vq.config import ConfigError, parse
from tokenizers_vq.fields import commented, sections
from tokenizers_vq.training.recipe import Recipe, list_recipes, load_recipe


def test_every_field_of_every_part_has_help_and_a_default() -> None:
    seen: set[str] = set()

    def walk(path: str) -> None:
        for section in sections(Recipe, path):
            for field in section.fields:
                assert field.help or field.name in ("parts", "weight"), f"{path}.{field.name}"
                below = ".".join(filter(None, (path, field.name)))
                if below.count(".") < 3 and below not in seen:
                    seen.add(below)
                    walk(below)

    walk("")
    assert {"model.quantizer.num_codes", "adversary.discriminator.layers", "losses.net", "optimizer.lr.over"} <= seen


def test_a_path_names_a_field_a_kind_or_an_entry() -> None:
    kinds = [section.kind for section in sections(Recipe, "model.quantizer")]
    assert {"vector", "fsq", "residual"} <= set(kinds)
    (fsq,) = sections(Recipe, "model.quantizer.fsq")
    assert [field.name for field in fsq.fields][:1] == ["levels"] and fsq.fields[0].default == "[8, 5, 5, 5]"
    assert sections(Recipe, "losses.0.lpips") == sections(Recipe, "losses.lpips")
    (section,) = sections(Recipe, "adversary.max_adaptive")
    assert [(field.type, field.default) for field in section.fields] == [("number", "10000.0")]
    with pytest.raises(ConfigError, match=r"no field 'quantiser' at model; did you mean 'quantizer'"):
        sections(Recipe, "model.quantiser")


@pytest.mark.parametrize("name", list_recipes())
def test_a_printed_recipe_is_the_recipe(name: str) -> None:
    recipe = load_recipe(name, ["data=photos"])
    assert parse(Recipe, yaml.safe_load(commented(recipe))) == recipe


def test_the_verbs(tvq_command) -> None:
    shown = tvq_command("fields", "adversary")
    assert shown.status == 0 and "max_adaptive  (number; default 10000.0)" in shown.out
    refused = tvq_command("fields", "adversary.strat")
    assert refused.status == 2 and "did you mean 'start'" in refused.err
    printed = tvq_command("recipes", "llamagen-f8")
    assert printed.status == 0 and parse(Recipe, yaml.safe_load(printed.out)) == load_recipe(
        "llamagen-f8", ["data=PATH"]
    )
    assert tvq_command("--version").out.startswith("tokenizers-vq ")
    prior = tvq_command("info", "gpt-tiny-imagenet-64")
    assert prior.status == 2 and "is a prior" in prior.err and "tvq-prior" in prior.err


def test_a_long_evaluation_speaks(capsys) -> None:
    note = progress("compared", every=0)
    note(2, 4)
    note(4, 4)
    assert "compared 2 of 4 images" in (said := capsys.readouterr().err) and "compared 4 of 4 images" in said
