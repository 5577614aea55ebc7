"""Presets of published priors have the published number of weights, and their recipes are read."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

import prior
from prior.recipe import list_recipes, load_recipe
from tokenizers_vq.codes import CodeLayout


class Published(NamedTuple):
    """What a preset has, with the codes and classes of the paper, and what the paper says."""

    weights: int
    """of the preset"""
    said: float
    """millions, as published"""
    grid: tuple[int, int] = (16, 16)
    codes: int = 16384
    classes: int = 1000
    unused: int = 0
    """weights of the reference that it never reads, which we leave out"""
    surplus: int = 0
    """weights that the paper does not count"""


def unread(dim: int) -> int:
    """Rows of RAR's tables: of N + 1,024 positions and targets N each count, of N + 100 steps N + 1; and a mask's.

    The positions of its two vectors before the codes add nothing to vectors that are learnt themselves.
    """
    return (2 * 1024 + 99 + 1) * dim


def uncounted(layers: int, dim: int) -> int:
    """ViT-VQGAN's table counts 11 dim^2 a block, two tables of codes, positions; no biases, norms, classes.

    All six of its rows follow 11 L D^2 + (2 K + N) D; a block without the last layer of its attention would have that
    many, which no text there says.
    """
    return layers * (dim * dim + 13 * dim) + 2 * dim + 1001 * dim


PRESETS = {
    "gpt-b": Published(110_888_448, 111),
    "gpt-l": Published(342_910_976, 343),
    "gpt-xl": Published(774_699_520, 775),
    "gpt-xxl": Published(1_410_972_672, 1400),
    "gpt-3b": Published(3_096_659_200, 3100),
    "taming-gpt": Published(304_934_912, 305, (32, 16), 1024, 1),
    "taming-gpt-imagenet": Published(1_412_178_432, 1400),
    "vim-base": Published(708_235_776, 650, (32, 32), 8192, surplus=uncounted(24, 1536)),
    "vim-large": Published(1_850_603_520, 1697, (32, 32), 8192, surplus=uncounted(36, 2048)),
    "rar-b": Published(259_273_984, 261, codes=1024, unused=unread(768)),
    "rar-l": Published(459_468_800, 461, codes=1024, unused=unread(1024)),
    "rar-xl": Published(952_675_584, 955, codes=1024, unused=unread(1280)),
    "rar-xxl": Published(1_495_496_320, 1499, codes=1024, unused=unread(1408)),
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_published_number_of_weights(name: str) -> None:
    wanted = PRESETS[name]
    with torch.device("meta"):
        layout = CodeLayout((wanted.grid,), 1, (wanted.codes,))
        model = prior.create(name, layout, {"kind": "class", "num_classes": wanted.classes})
    found = sum(parameter.numel() for parameter in model.parameters())
    assert found == wanted.weights
    # Papers give millions, or billions with one digit.
    rounded = 15 if wanted.said in (1400, 3100) else 1
    assert abs((found + wanted.unused - wanted.surplus) / 1e6 - wanted.said) < rounded


def test_the_rest_are_small() -> None:
    assert set(prior.list_models()) - set(PRESETS) >= {"gpt-tiny", "rar-tiny", "maskgit-tiny"}
    with torch.device("meta"):
        for name in ("gpt-tiny", "rar-tiny"):
            model = prior.create(name, CodeLayout(((8, 8),), 1, (512,)))
            assert sum(parameter.numel() for parameter in model.network.blocks.parameters()) < 3e6


@pytest.mark.parametrize("name", [*PRESETS, "rar-tiny", "gpt-tiny"])
def test_a_preset_has_a_recipe(name: str) -> None:
    assert name in list_recipes()
    recipe = load_recipe(name, "codes")
    assert recipe.model.network.kind == "gpt"
    assert set(recipe.anneal) == ({"network.random_order"} if name.startswith("rar") else set())
    assert recipe.model.network.order == ("random" if name.startswith("rar") else "raster")
