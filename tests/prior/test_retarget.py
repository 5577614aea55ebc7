"""A run that begins with a trained prior: its own codes, another tokenizer's, another grid, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import prior
from prior.conditions import ClassConfig
from prior.model import Prior, PriorConfig
from prior.networks.gpt import Gpt, GptConfig
from prior.networks.maskgit import MaskGitConfig
from prior.recipe import load_recipe
from prior.retarget import as_begun, begin, interpolated, stretch
from prior.sequences import LayoutConfig
from prior.training import train
from tests.laws.priors import by_name, rows
from tests.prior.conftest import SMALL
from tokenizers_vq.codes import CodeLayout

ROPE = GptConfig(layers=2, dim=32, heads=2, multiple=16)
RAR = by_name("rar, grid").network
SMALL_GRID, LARGE_GRID = CodeLayout(((4, 4),), 1, (16,)), CodeLayout(((6, 8),), 1, (16,))


def build(
    network: Any = ROPE, layout: CodeLayout = SMALL_GRID, whose: str | None = "a", condition: Any = None, seed: int = 0
) -> Prior:
    torch.manual_seed(seed)
    condition = condition or ClassConfig(num_classes=3)
    made = PriorConfig(
        network=network, condition=condition, layout=LayoutConfig.of(layout), fingerprint=whose and whose * 64
    )
    model = Prior(made).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def filled(new: Prior, old: Prior) -> tuple[dict[str, Tensor], str]:
    said: list[str] = []
    begin(new, old, "P", said.append)
    assert len(said) == 1 and "\n" not in said[0]
    return new.state_dict(), said[0]


@pytest.mark.parametrize("network", [ROPE, RAR, MaskGitConfig(layers=1, dim=32, heads=2)])
def test_codes_of_the_same_tokenizer_keep_everything(network: Any) -> None:
    old, new = build(network), build(network, seed=1)
    state, said = filled(new, old)
    assert said == "begins with the weights of P"
    assert all(torch.equal(state[key], value) for key, value in old.state_dict().items())


@pytest.mark.parametrize("network", [ROPE, RAR, MaskGitConfig(layers=1, dim=32, heads=2)])
@pytest.mark.parametrize("size", [16, 50])
def test_codes_of_another_tokenizer_get_a_new_embedding_and_head(network: Any, size: int) -> None:
    old, new = build(network), build(network, CodeLayout(((4, 4),), 1, (size,)), "b", seed=1)
    before = {key: value.clone() for key, value in new.state_dict().items()}
    state, said = filled(new, old)
    assert said == f"begins with the weights of P: new embedding and head for codes of another tokenizer ({'b' * 8})"
    fresh = {key for key in state if torch.equal(state[key], before[key]) and key != "network.random_order"}
    assert fresh == {key for key in state if key.startswith(("network.tokens.", "network.head."))}
    kept = set(state) - fresh
    assert all(torch.equal(state[key], old.state_dict()[key]) for key in kept)
    assert bool(new(rows(new.layout, 2), 1).isfinite())


def test_another_grid_stretches_tables_of_places() -> None:
    state, said = filled(new := build(RAR, LARGE_GRID, seed=1), old := build(RAR))
    assert said == "begins with the weights of P: positions stretched from 4x4 to 6x8"
    for name in ("positions", "targets"):
        wanted = torch.nn.functional.interpolate(
            getattr(old.network, name).detach().view(1, 4, 4, 32).permute(0, 3, 1, 2), (6, 8), mode="bicubic"
        )
        torch.testing.assert_close(state[f"network.{name}"], wanted[0].permute(1, 2, 0).reshape(48, 32))
    assert torch.equal(state["network.places"][0], old.state_dict()["network.places"][0])
    assert state["network.places"].shape == (49, 32)
    assert bool(new(rows(new.layout, 2), 1).isfinite())


def test_stretching_keeps_levels_rows_and_smooth_fields() -> None:
    before, after = CodeLayout(((4, 4),), 2, (5, 5)), CodeLayout(((8, 8),), 2, (5, 5))
    row, column, level = before.positions()[:, 1:].float().unbind(1)
    table = torch.stack((row, column, 10 * level, torch.ones(32)), dim=1)
    found = stretch(table, before, after)
    assert found.shape == (128, 4)
    row, column, level = after.positions()[:, 1:].float().unbind(1)
    inner = (row > 1) & (row < 6) & (column > 1) & (column < 6)  # bicubic is exact where its window is whole
    wanted = torch.stack(((row + 0.5) / 2 - 0.5, (column + 0.5) / 2 - 0.5, 10 * level, torch.ones(128)), dim=1)
    torch.testing.assert_close(found[inner][:, 2:], wanted[inner][:, 2:], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[inner][:, :2], wanted[inner][:, :2], atol=0.1, rtol=0)
    line = CodeLayout(((6,),), 1, (5,)), CodeLayout(((9,),), 1, (5,))
    assert stretch(torch.ones(8, 3), *line).allclose(torch.ones(11, 3))
    assert stretch(table, before, before).allclose(table, atol=1e-6)
    with pytest.raises(ValueError, match="places of 4x4 x 2 levels cannot be stretched to 4x4: other grids or levels"):
        stretch(table, before, SMALL_GRID)
    with pytest.raises(ValueError, match="places of 4x4 cannot be stretched to 16: other grids or levels"):
        stretch(torch.ones(16, 3), SMALL_GRID, CodeLayout(((16,),), 1, (5,)))


def test_rotary_positions_are_interpolated(codes: Path, tmp_path: Path) -> None:
    recipe = load_recipe("gpt-tiny", codes)
    old = build(ROPE.replace(rotary_scale=(0.5, 1.0)))
    found = interpolated(recipe, LARGE_GRID, old).model.network
    assert isinstance(found, GptConfig) and found.rotary_scale == (0.5 * 4 / 6, 4 / 8)
    assert interpolated(recipe, SMALL_GRID, build()) == recipe
    assert as_begun(recipe, tmp_path) == recipe
    with pytest.raises(ValueError, match="knows places of 4x4, which say nothing of those of 32: a grid is no row"):
        interpolated(recipe, CodeLayout(((32,),), 1, (16,)), build())
    said = load_recipe("gpt-tiny", codes, ["model.network.rotary_scale=[0.9, 0.9]"])
    assert interpolated(said, LARGE_GRID, old) == said
    learned = load_recipe("taming-gpt", codes)
    assert interpolated(learned, LARGE_GRID, build(RAR)) == learned
    _, words = filled(build(ROPE.replace(rotary_scale=(0.5, 0.5)), LARGE_GRID), build())
    assert words == "begins with the weights of P: positions stretched from 4x4 to 6x8"
    wide = Prior(build(layout=LARGE_GRID).config.replace(network=ROPE.replace(rotary_scale=(0.5, 0.5)))).network
    assert isinstance(wide, Gpt)
    torch.testing.assert_close(wide.angles(0)[8 * 4 + 6], build().network.angles(0)[4 * 2 + 3])  # type: ignore[operator]


@pytest.mark.parametrize(
    ("new", "old", "says"),
    [
        ({}, {"network": MaskGitConfig(layers=1, dim=32, heads=2)}, "it is a maskgit network, the recipe's is gpt"),
        ({}, {"whose": None}, "does not say whose codes it knows: convert it again with --tokenizer"),
        ({}, {"network": ROPE.replace(layers=3)}, r"do not fit .* first at network\.blocks\.2"),
        ({}, {"network": ROPE.replace(dim=64)}, "do not fit .* give the recipe the same network"),
        ({"network": RAR}, {}, "do not fit"),
        ({}, {"layout": CodeLayout(((4, 4),), 1, (17,))}, r"do not fit .* first at network\.tokens\.weight"),
    ],
)
def test_what_does_not_fit_is_one_line(new: dict[str, Any], old: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"--init-from P: .*{says}") as error:
        begin(build(**new), build(**old), "P", print)
    assert "\n" not in str(error.value)


def test_what_differs_is_said() -> None:
    old = build(condition=ClassConfig(num_classes=5))
    _, said = filled(build(ROPE.replace(token_noise=0.1)), old)
    assert "it was told a class of 5, this one is told a class of 3: what reads that begins untrained" in said
    assert said.endswith("the recipe's network differs in token_noise, and the recipe's holds")


def test_a_network_that_cannot_be_given_other_codes_says_so(monkeypatch) -> None:
    monkeypatch.setattr(Gpt, "of_codes", ())
    with pytest.raises(ValueError, match=r"codes of another tokenizer \(a{8}\), and a gpt network cannot"):
        begin(build(whose="b"), build(), "P", print)


def test_a_run_begins_with_a_prior_and_goes_on(codes: Path, write_codes, tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    first, second = tmp_path / "first", tmp_path / "second"
    train(load_recipe("gpt-tiny", codes, SMALL), first, device="cpu")
    other = write_codes(tmp_path / "codes", 40, seed=3, fingerprint="e" * 64, tokenizer=None)
    recipe = load_recipe("gpt-tiny", other, [*SMALL, "steps=3", "ema=null", "optimizer.lr=0.0"])
    train(recipe, second, device="cpu", init_from=str(first))
    said = caplog.text
    assert said.count("begins with the weights of") == 1 and "new embedding and head for codes of another" in said
    old, new = prior.load(first).state_dict(), prior.load(second).state_dict()
    fresh = {key for key in new if not torch.equal(new[key], old[key])}
    assert fresh == {"network.tokens.weight", "network.head.weight"}
    # As if it had begun on another grid: the run goes on with what its own recipe says.
    kept = second / "recipe.yaml"
    kept.write_text(kept.read_text().replace("- 1.0\n    - 1.0", "- 0.5\n    - 0.5"))
    scaled = as_begun(recipe, second).model.network
    assert isinstance(scaled, GptConfig) and scaled.rotary_scale == (0.5, 0.5)
    kept.write_text(kept.read_text().replace("- 0.5\n    - 0.5", "- 1.0\n    - 1.0"))
    train(recipe.replace(steps=4), second, device="cpu", init_from=str(tmp_path / "gone"))
    assert "resumes from its checkpoint: --init-from" in caplog.text
    with pytest.raises(FileNotFoundError, match="gone"):
        train(recipe, tmp_path / "third", device="cpu", init_from=str(tmp_path / "gone"))
    assert not (tmp_path / "third").exists()
