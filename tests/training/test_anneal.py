"""Scalar buffers that a recipe's schedules set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokenizers_vq.models import load
from tokenizers_vq.training.recipe import load_recipe
from tokenizers_vq.training.runs import train

GUMBEL = ["model.quantizer={kind: gumbel, num_codes: 32, dim: 4}", "adversary=null", "image_every=0"]


def test_a_recipe_anneals_temperature_and_kl(tmp_path: Path, small: list[str]) -> None:
    own = [override for override in small if not override.startswith(("model.quantizer", "adversary"))]
    schedules = [
        "anneal={quantizer.temperature: {kind: cosine, begin: 1.0, end: 0.0625, over: [0, 7]}}",
        "quantizer_losses={kl: {begin: 0, end: 2, over: [0, 8]}}",
    ]
    out = tmp_path / "run"
    train(load_recipe("vqgan-tiny-64", [*own, *GUMBEL, *schedules]), out)
    assert load(out).quantizer.temperature == 0.0625
    assert json.loads((out / "log.jsonl").read_text().splitlines()[-1])["kl"] > 0


def test_annealing_what_is_not_there_is_refused(tmp_path: Path, small: list[str]) -> None:
    own = [override for override in small if not override.startswith(("model.quantizer", "adversary"))]
    with pytest.raises(ValueError, match=r"no scalar buffer .*; did you mean .quantizer\.temperature"):
        train(load_recipe("vqgan-tiny-64", [*own, *GUMBEL, "anneal={quantizer.temp: 1.0}"]), tmp_path)
