"""The recipes of quantizers without a codebook: small ones train and load again, published ones are as published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tokenizers_vq as tvq
from tokenizers_vq.config import schedule_value
from tokenizers_vq.training.recipe import load_recipe
from tokenizers_vq.training.runs import train

NARROW = [f"model.{part}.{field}" for part in ("encoder", "decoder") for field in ("width=8", "groups=4")]
SHORT = ["data=skimage", "data.workers=0", "steps=3", "batch_size=4", "image_every=0", "precision=fp32"]


@pytest.mark.parametrize(("name", "codes"), [("fsq-tiny-64", 1000), ("lfq-tiny-64", 1024)])
def test_a_small_recipe_trains_and_loads_again(name: str, codes: int, tmp_path: Path) -> None:
    untrained = ["adversary=null", "losses=[{kind: l1}]"]  # the perceptual network is an extra
    train(load_recipe(name, [*SHORT, *NARROW, *untrained]), tmp_path, device="cpu")
    tokenizer = tvq.load(tmp_path)
    assert tokenizer.code_layout().sizes == (codes,)
    images = torch.rand(2, 3, 64, 32) * 2 - 1
    assert tokenizer.decode(tokenizer.encode(images)).shape == images.shape
    assert tokenizer.fingerprint == tvq.load(tmp_path).fingerprint


def test_open_magvit2_divides_its_learning_rate_after_200_and_250_epochs() -> None:
    recipe = load_recipe("open-magvit2-f16", ["data=photos"])
    epoch = 1_281_167 // recipe.batch_size + 1
    assert recipe.steps == 270 * epoch
    rates = [schedule_value(recipe.optimizer.lr, number * epoch + 1) for number in (0, 199, 200, 249, 250, 269)]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6])
    quantizer = recipe.model.quantizer
    assert quantizer.kind == "lfq" and (quantizer.beta, quantizer.entropy_weight) == (0.25, 0.1)


def test_fsq_needs_no_quantizer_loss() -> None:
    recipe = load_recipe("fsq-f16-1000", ["data=photos"])
    assert recipe.model.quantizer.build()(torch.randn(1, 4, 2, 2)).losses == {}
