"""K-means fits the codebook to the first batches; then it learns as configured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq.quantizers import VectorQuantizer, kmeans

KINDS = [
    pytest.param({"distance": distance, "codebook": codebook}, id=f"{distance}-{codebook}")
    for distance in ("euclidean", "cosine")
    for codebook in ("gradient", "ema")
]


def blobs(centres: Tensor, images: int, spread: float = 0.05) -> Tensor:
    """Features `(images, D, 8, 8)`, each near a random one of the centres."""
    picked = centres[torch.randint(len(centres), (images, 8, 8))]
    return (picked + spread * torch.randn_like(picked)).movedim(-1, 1)


def error(quantizer: VectorQuantizer, z: Tensor) -> float:
    source = F.normalize(z, dim=1) if quantizer.config.distance == "cosine" else z
    return F.mse_loss(quantizer.lookup(quantizer.encode(z)), source).item()


@pytest.mark.parametrize("fields", KINDS)
def test_it_finds_the_clusters(fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    centres = 3 * torch.randn(20, 8)
    quantizer = VectorQuantizer(num_codes=40, dim=8, kmeans_batches=3, **fields)
    for _ in range(3):
        result = quantizer(blobs(centres, 8))
    assert result.stats["perplexity"] > 30
    wanted = F.normalize(centres, dim=1) if fields["distance"] == "cosine" else centres
    assert torch.cdist(wanted, quantizer.codebook).amin(1).max() < 0.1


@pytest.mark.parametrize("fields", KINDS)
def test_a_batch_may_hold_fewer_features_than_there_are_codes(fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(num_codes=300, dim=8, kmeans_batches=8, **fields)
    for _ in range(8):
        quantizer(torch.randn(2, 8, 8, 8))
    quantizer.eval()
    used = torch.cat([quantizer.encode(torch.randn(8, 8, 8, 8)).flatten() for _ in range(16)]).unique()
    assert len(used) > 0.9 * 300


def test_one_update_without_counts_is_a_round_of_lloyds_and_with_counts_a_fading_mean() -> None:
    rows, centres = torch.tensor([[0.0], [2.0], [10.0]]), torch.tensor([[1.5], [9.0]])
    moved, counts = kmeans.update(rows, centres, torch.zeros(2), score="euclidean")
    assert moved.flatten().tolist() == [1.0, 10.0] and counts.tolist() == [2.0, 1.0]
    moved, counts = kmeans.update(torch.tensor([[4.0], [12.0]]), moved, counts, score="euclidean")
    assert moved.flatten().tolist() == pytest.approx([(1 * 1.6 + 4) / 2.6, (10 * 0.8 + 12) / 1.8])
    assert counts.tolist() == pytest.approx([2.6, 1.8])


def test_a_centre_that_has_no_row_moves_to_one_far_from_its_own() -> None:
    rows, centres = torch.tensor([[0.0], [0.0], [0.0], [8.0], [-8.0]]), torch.tensor([[0.0], [100.0]])
    moved, counts = kmeans.update(rows, centres, torch.zeros(2), score="euclidean")
    assert moved[0] == 0 and moved[1].abs() == 8 and counts.tolist() == [5.0, 0.0]


@pytest.mark.parametrize("fields", KINDS)
def test_it_follows_features_that_move(fields: dict[str, Any]) -> None:
    quantizer = VectorQuantizer(num_codes=100, dim=8, kmeans_batches=20, **fields)
    for step in range(20):
        quantizer(torch.randn(4, 8, 8, 8) * (0.1 + 0.1 * step) + 0.2 * step)
    quantizer.eval()
    assert len(quantizer.encode(torch.randn(64, 8, 8, 8) * 2 + 3.8).unique()) > 65


@pytest.mark.parametrize("fields", KINDS)
def test_meanwhile_nothing_else_moves_the_codebook(fields: dict[str, Any]) -> None:
    quantizer = VectorQuantizer(num_codes=20, dim=8, kmeans_batches=2, entropy_weight=0.1, **fields)
    for step in range(3):
        z = torch.randn(4, 8, 8, 8, requires_grad=True)
        result = quantizer(z)
        fitting = step < 2
        if fitting:
            assert torch.equal(quantizer.lookup(result.codes), result.features)
            assert torch.equal(quantizer.encode(z), result.codes)
        if fields["codebook"] == "gradient":
            sum(result.losses.values()).backward()
            assert (quantizer.weight.grad.abs().sum() == 0) == fitting
            assert result.losses["codebook"] > 0
        elif fitting:
            assert torch.equal(quantizer.cluster_sum, quantizer.weight)
            assert torch.equal(quantizer.cluster_size, torch.ones(20))
        else:
            assert not torch.equal(quantizer.cluster_size, torch.ones(20))
    before = quantizer.codebook.clone()
    if fields["codebook"] == "gradient":
        quantizer(torch.randn(4, 8, 8, 8))
        assert torch.equal(quantizer.codebook, before)


@pytest.mark.parametrize("fields", KINDS)
def test_resuming_amid_it_is_never_having_stopped(fields: dict[str, Any]) -> None:
    batches = [torch.randn(2, 8, 8, 8) for _ in range(6)]
    whole = VectorQuantizer(num_codes=150, dim=8, kmeans_batches=4, **fields)
    parts = VectorQuantizer(num_codes=150, dim=8, kmeans_batches=4, **fields)
    parts.load_state_dict(whole.state_dict())
    for step, batch in enumerate(batches):
        resumed = VectorQuantizer(num_codes=150, dim=8, kmeans_batches=4, **fields)
        resumed.load_state_dict(parts.state_dict(), strict=True)
        parts = resumed
        for quantizer in (whole, parts):
            torch.manual_seed(step)
            quantizer(batch)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name


def test_it_lowers_the_error_and_evaluation_does_not_start_it() -> None:
    z = torch.randn(8, 8, 8, 8)
    quantizer = VectorQuantizer(num_codes=64, dim=8, kmeans_batches=1).eval()
    quantizer(z)
    assert quantizer.kmeans_step == 0
    before = error(quantizer, z)
    quantizer.train()(z)
    assert error(quantizer, z) < 0.6 * before


def test_without_it_a_quantizer_has_no_further_state() -> None:
    assert set(VectorQuantizer(num_codes=8, dim=4).state_dict()) == {"weight", "age"}
