"""What the converter of Halton-MaskGIT refuses, and files that others train with the same code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import prior
from tests.conftest import shared


@pytest.fixture
def case() -> tuple[dict[str, Tensor], dict[str, Any]]:
    folder = shared("golden/halton-maskgit/register")
    tensors = torch.load(folder / "model.pt", weights_only=True)["model_state_dict"]
    return tensors, yaml.safe_load((folder / "config.yaml").read_text())


def convert(tensors: dict[str, Tensor], config: dict[str, Any] | None, folder: Path) -> prior.Prior:
    torch.save({"model_state_dict": tensors, "iter": 1}, folder / "model.pth")
    return prior.convert("halton-maskgit", folder / "model.pth", config)


def test_a_head_of_its_own_stays_one(case: tuple[dict[str, Tensor], dict[str, Any]], tmp_path: Path) -> None:
    tensors, config = case
    tied = convert(tensors, config, tmp_path)
    loose = convert({**tensors, "head.weight": tensors["head.weight"] + 1}, config, tmp_path)
    assert tied.config.network.tied and not loose.config.network.tied
    codes = torch.full((1, 36), -1)
    with torch.no_grad():
        assert not torch.allclose(tied.logits(codes, 0), loose.logits(codes, 0))


@pytest.mark.parametrize(
    "change, config, says",
    [
        ({"last_norm.norm_final.bias": None}, {}, "missing last_norm.norm_final.bias"),
        ({"transformer.layers.1.ln2.weight": None}, {}, "missing network.blocks.1.mlp_norm.weight"),
        ({"transformer.layers.1.attn.wk.weight": None}, {}, "wk"),
        ({"transformer.layers.0.ff.w4.weight": torch.ones(2, 2)}, {}, "w4"),
        ({"pos_emb.weight": torch.ones(35, 32)}, {}, "35 positions fill no square"),
        ({"head.bias": None}, {}, "its head is"),
        ({"tok_emb.weight": None}, {}, "tok"),
        ({}, {"proj": 2}, "proj 2 of the config does not run"),
        ({}, {"codebook_size": 40}, "the config says codebook_size 40, its tensors 48"),
        ({}, {"nb_class": 11}, "nb_class 11"),
        ({}, {"register": 2}, "register 2"),
        ({}, {"img_size": 128}, "img_size / f_factor 8"),
        ({}, {"transformer": {"heads": 5}}, "5 heads do not make 32 channels"),
        ({}, {"transformer": {}}, "an unknown number of heads do not make"),
        ({}, {"transformer": 3}, "must be a mapping"),
    ],
)
def test_what_does_not_fit_is_refused(
    case: tuple[dict[str, Tensor], dict[str, Any]],
    change: dict[str, Tensor | None],
    config: dict[str, Any],
    says: str,
    tmp_path: Path,
) -> None:
    tensors, said = case
    changed = {name: value for name, value in {**tensors, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=says) as caught:
        convert(changed, {**said, **config}, tmp_path)
    assert "\n" not in str(caught.value)
