"""Small untrained models, shipped as trained ones are, into folders of the tests' own."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import tokenizers_vq as tvq
from prior.conditions import ClassConfig
from prior.model import Prior, PriorConfig
from prior.networks.gpt import GptConfig
from prior.sequences import LayoutConfig
from tests.conftest import ROOT

CLASSES = ("goldfish", "tailed frog", "barn")


def ship() -> Callable[[list[str]], Path]:
    """`main` of examples/ship.py."""
    return runpy.run_path(str(ROOT / "examples" / "ship.py"))["main"]


def run_of(folder: Path, model: tvq.Tokenizer | Prior) -> Path:
    """A finished run that holds the model."""
    model.save_pretrained(folder / "model")
    recipe = {"steps": 7, "batch_size": 4, "seed": 3, "data": {"path": "/home/somebody/tiny-imagenet-64"}}
    if isinstance(model, tvq.Tokenizer):
        losses = [{"kind": "l1"}, {"kind": "perceptual", "backbone": "tf_efficientnet_lite1"}]
        recipe |= {"model": model.config.to_dict(), "losses": losses}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "log.jsonl").write_text(json.dumps({"step": 7}) + "\n")
    return folder


def make_tokenizer(seed: int = 1) -> tvq.Tokenizer:
    """Of 16 x 16 images and 16 codes."""
    torch.manual_seed(seed)
    narrow = ["encoder.width=16", "decoder.width=16", "quantizer.num_codes=16", "image_size=16"]
    return tvq.create("vqvae-tiny-64", narrow).eval()


def make_prior(tokenizer: tvq.Tokenizer, name: str | None = None) -> Prior:
    """Of the tokenizer's codes and three classes."""
    return Prior(
        PriorConfig(
            network=GptConfig(layers=1, dim=32, heads=2, multiple=16),
            condition=ClassConfig(num_classes=len(CLASSES)),
            layout=LayoutConfig.of(tokenizer.code_layout()),
            tokenizer=name,
            fingerprint=tokenizer.fingerprint,
            label_names=CLASSES,
        )
    ).eval()


def ship_stand_ins(tokenizers: Path, priors: Path, work: Path, names: tuple[str, str]) -> None:
    """A tokenizer and a prior of it in `weights` folders, under two names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokenizers_vq.tokenizer.WEIGHTS", tokenizers)
        patch.setattr("prior.model.WEIGHTS", priors)
        main = ship()
        main([str(run_of(work / "tokenizer", make_tokenizer())), "--name", names[0]])
        main([str(run_of(work / "prior", make_prior(tvq.load(names[0])))), "--name", names[1]])
