"""A collapsed codebook comes back to use by the revival of dead codes, while it learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokenizers_vq.quantizers import VectorQuantizer

CODES = 128


def features(images: int = 8) -> Tensor:
    return torch.rand(images, 8, 8, 8) - 0.4


def usage_after_training(distance: str, codebook: str, revive_after: int | None) -> float:
    """Share of codes used over 8192 features, after 120 updates from a codebook with all codes in one far place."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(num_codes=CODES, dim=8, distance=distance, codebook=codebook, revive_after=revive_after)
    with torch.no_grad():
        collapsed = torch.cat([torch.ones(1, 8), -50 - 0.01 * torch.rand(CODES - 1, 8)])
        quantizer.weight.copy_(quantizer._as_looked_up(collapsed))
        if codebook == "ema":
            quantizer.cluster_sum.copy_(quantizer.weight)
    trained = list(quantizer.parameters())
    optimizer = torch.optim.Adam(trained, lr=1e-2) if trained else None
    for _ in range(120):
        loss = torch.stack(list(quantizer(features()).losses.values())).sum()
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return len(quantizer.encode(features(128)).unique()) / CODES


@pytest.mark.parametrize("codebook", ["gradient", "ema"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_a_collapsed_codebook_recovers(distance: str, codebook: str) -> None:
    assert usage_after_training(distance, codebook, None) < 0.5
    assert usage_after_training(distance, codebook, 10) > 0.9


def test_codes_beyond_the_features_of_a_batch_wait_so_that_none_are_equal() -> None:
    quantizer = VectorQuantizer(num_codes=100, dim=4, revive_after=1)
    quantizer.age.fill_(1)
    with torch.no_grad():
        quantizer.weight.copy_(50 + torch.rand(100, 4))
    quantizer(torch.randn(1, 4, 8, 8))
    assert (quantizer.weight < 40).all(1).sum() == 64
    assert len(quantizer.weight.unique(dim=0)) == 100
    quantizer(torch.randn(1, 4, 8, 8))
    assert (quantizer.weight < 40).all()


def test_the_log_says_how_many_codes_are_dead_and_for_how_long() -> None:
    quantizer = VectorQuantizer(num_codes=4, dim=2)
    with torch.no_grad():
        quantizer.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0], [50.0, 0.0], [0.0, 50.0]]))
    z = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).reshape(1, 2, 1, 2)
    for update in range(1, 257):
        stats = quantizer(z).stats
        assert stats["oldest"] == update
        assert (stats["dead"], stats["usage"]) == ((2, 0.5) if update == 256 else (0, 1))
    assert stats["perplexity"] == pytest.approx(2)


def test_a_code_moved_in_vain_is_dead_nevertheless_and_moved_again() -> None:
    quantizer = VectorQuantizer(num_codes=3, dim=2, revive_after=100)
    feature, away = torch.zeros(1, 2, 1, 1), torch.tensor([[0.0, 0.0], [5.0, 5.0], [6.0, 6.0]])
    moved = []
    for update in range(301):
        with torch.no_grad():  # the first code lies on the only feature, so that one moved there stays unused
            quantizer.weight.copy_(away)
        stats = quantizer(feature).stats
        if not torch.equal(quantizer.weight, away):
            moved.append(update)
    assert moved == [100, 200, 300]
    assert (stats["dead"], stats["oldest"]) == (2, 301), "what was used counts, not what was moved"
