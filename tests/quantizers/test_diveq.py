"""DiVeQ's warm-up, revival and noise, and its state in two processes; VQBridge folded away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenizers_vq as tvq
from tests.laws.quantizers import BOOKS
from tests.processes import in_processes
from tokenizers_vq.config import ConfigError
from tokenizers_vq.quantizers import (
    DiveqQuantizer,
    MultiscaleQuantizer,
    ProductQuantizer,
    ResidualQuantizer,
    VectorQuantizer,
    VqBridgeQuantizer,
)
from tokenizers_vq.tokenizer import Tokenizer, TokenizerConfig, load_folder

NETWORK = {"kind": "vqvae", "width": 8, "block_width": 4, "blocks": 1}


def test_warm_up_passes_features_on_and_then_starts_codes_at_features() -> None:
    quantizer, z = DiveqQuantizer(num_codes=16, dim=4, warmup=2), 3 + torch.randn(4, 4, 5, 5)
    for _ in range(2):
        assert torch.equal(quantizer(z).features, z)
    assert quantizer.codebook.abs().max() < 0.1
    quantizer(z)
    rows = z.movedim(1, -1).reshape(-1, 4)
    assert all((rows == code).all(1).any() for code in quantizer.codebook)
    assert torch.equal(quantizer.eval()(z).features, quantizer.lookup(quantizer.encode(z)))


@pytest.mark.parametrize("space_filling", [False, True])
def test_noise_turns_the_step_and_keeps_its_length(space_filling: bool) -> None:
    quantizer = DiveqQuantizer(num_codes=16, dim=6, noise=0.2, space_filling=space_filling)
    quantizer.weight.data.normal_()
    z = torch.randn(4, 6, 5, 5)
    first, second = quantizer(z), quantizer(z)
    assert not torch.equal(first.features, second.features)
    length = (first.features - z).norm(dim=1)
    if not space_filling:
        exact = (quantizer.lookup(first.codes) - z).norm(dim=1)
        assert torch.allclose(length, exact, atol=1e-5)
    assert not first.losses and first.codes.max() < 16


def test_a_curve_needs_two_codes() -> None:
    with pytest.raises(ConfigError, match="num_codes: a space-filling curve needs at least 2 codes"):
        DiveqQuantizer(num_codes=1, space_filling=True)


def test_every_code_on_the_curve_is_drawn_along() -> None:
    """Codes far from all features get gradients from the stretches that lead to them, not by the nearest code."""
    z = torch.randn(8, 4, 6, 6)
    reached = {}
    for space_filling in (False, True):
        torch.manual_seed(1)
        quantizer = DiveqQuantizer(num_codes=16, dim=4, noise=0.0, space_filling=space_filling)
        quantizer.weight.data.copy_(torch.randn(16, 4))
        quantizer.weight.data[1::2] += 6  # every other code far away
        moved = torch.zeros(16, dtype=torch.bool)
        for _ in range(60):
            (gradient,) = torch.autograd.grad(quantizer(z).features.square().sum(), quantizer.weight)
            moved |= gradient.abs().sum(1) > 0
        reached[space_filling] = int(moved.sum())
    assert reached[False] <= 8 and reached[True] == 16


def _states(rank: int, world: int) -> dict[str, Tensor]:
    torch.manual_seed(5)
    quantizer = DiveqQuantizer(num_codes=24, dim=4, noise=0.0, revive_after=2, warmup=1)
    batches = [torch.randn(4, 4, 3, 3) for _ in range(5)]
    for step, batch in enumerate(batches):
        torch.manual_seed(100 * step + rank)
        share = 4 // world
        quantizer(batch[rank * share : (rank + 1) * share])
    return quantizer.state_dict()


def test_two_processes_revive_and_begin_alike() -> None:
    first, second = in_processes(2, _states)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["step"] == 2 and first["weight"].abs().max() > 0.5


FOLDED: list[Any] = [
    VqBridgeQuantizer(num_codes=64, dim=6, width=16, heads=2, patch=2),
    VqBridgeQuantizer(num_codes=30, dim=6, width=16, network="mlp", estimator="rotation"),
    ResidualQuantizer(levels=2, book=BOOKS["bridge"]),
    ResidualQuantizer(levels=2, book=BOOKS["bridge"], shared=True),
    ProductQuantizer(groups=2, book=(BOOKS["bridge"], BOOKS["simvq"])),
    MultiscaleQuantizer(scales=(1, 3, 5), phis=2, book=BOOKS["bridge"]),
]


@pytest.mark.parametrize("quantizer", FOLDED, ids=lambda q: f"{q.config.kind}")
def test_folded_is_the_same_quantizer_without_the_bridge(quantizer: Any) -> None:
    folded, z = quantizer.eval().folded(), torch.randn(2, quantizer.in_dim, 5, 5)
    assert not any(isinstance(part, VqBridgeQuantizer) for part in folded.modules())
    assert any(isinstance(part, VectorQuantizer) for part in folded.modules())
    ours, theirs = quantizer.encode(z), folded.encode(z)
    for left, right in zip(*(c if isinstance(c, tuple) else (c,) for c in (ours, theirs)), strict=True):
        assert torch.equal(left, right)
    assert torch.equal(quantizer.lookup(ours), folded.lookup(ours))
    assert folded.config == quantizer.config.folded()


def test_a_saved_tokenizer_holds_the_folded_codebook(tmp_path: Path) -> None:
    config = TokenizerConfig(image_size=16, encoder=NETWORK, quantizer=BOOKS["bridge"], decoder=NETWORK)
    tokenizer, images = Tokenizer(config).eval(), torch.rand(2, 3, 16, 16) * 2 - 1
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = load_folder(tmp_path / "saved")
    assert loaded.config.quantizer.kind == "vector" and loaded.fingerprint == tokenizer.fingerprint
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))
    assert torch.equal(loaded.decode(loaded.encode(images)), tokenizer.decode(tokenizer.encode(images)))
    assert loaded.folded() is loaded and tokenizer.config.quantizer.kind == "vqbridge"
    assert isinstance(tvq.load(tmp_path / "saved").quantizer, VectorQuantizer)


def test_a_bridge_that_cannot_stand_says_why() -> None:
    with pytest.raises(
        ConfigError, match=r"num_codes: 48 codes are no square whose side 4 divides: .* or network: mlp"
    ):
        VqBridgeQuantizer(num_codes=48)
    with pytest.raises(ConfigError, match="heads: 3 heads do not divide the width 16"):
        VqBridgeQuantizer(num_codes=64, width=16, heads=3)
