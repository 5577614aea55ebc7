"""Residual levels: shared and separate codebooks, quantizer dropout, the losses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tokenizers_vq.config import ConfigError
from tokenizers_vq.quantizers import ResidualQuantizer


def spread(**fields: object) -> ResidualQuantizer:
    quantizer = ResidualQuantizer(**{"levels": 3, "num_codes": 32, "dim": 4, **fields})
    with torch.no_grad():
        for number, book in enumerate(quantizer.codebooks):
            book.weight.normal_(std=0.5**number)
    return quantizer


def test_every_level_comes_nearer() -> None:
    quantizer, z = spread(), torch.randn(4, 4, 6, 6)
    codes = quantizer.encode(z)
    errors = []
    for kept in range(1, 4):
        first = sum(level.lookup(codes[..., i]) for i, level in enumerate(quantizer.levels[:kept]))
        errors.append(F.mse_loss(first, z).item())
    assert errors[0] > errors[1] > errors[2] > 0
    assert torch.allclose(quantizer.lookup(codes), first)


@pytest.mark.parametrize("codebook", ["gradient", "ema"])
def test_losses_are_means_over_levels_of_the_partial_sums(codebook: str) -> None:
    quantizer, z = spread(codebook=codebook, beta=0.5).eval(), torch.randn(4, 4, 6, 6)
    result, total, wanted = quantizer(z), torch.zeros_like(z), []
    for level, chosen in zip(quantizer.levels, result.codes.unbind(-1), strict=True):
        total = total + level.lookup(chosen)
        wanted.append(F.mse_loss(total, z))
    mean = torch.stack(wanted).mean()
    assert torch.isclose(result.losses["commitment"], 0.5 * mean)
    assert ("codebook" in result.losses) == (codebook == "gradient")
    assert codebook == "ema" or torch.isclose(result.losses["codebook"], mean)


def test_a_shared_codebook_is_one() -> None:
    shared, separate = spread(shared=True), spread()
    assert sum(p.numel() for p in shared.parameters()) * 3 == sum(p.numel() for p in separate.parameters())
    assert shared.layout((2, 2)) == separate.layout((2, 2))
    assert shared.training_state == () and "codebooks.0.age" in shared.state_dict()


def test_one_level_is_a_vector_quantizer_with_its_code_shape() -> None:
    quantizer = ResidualQuantizer(levels=1, num_codes=8, dim=4)
    codes = quantizer(torch.randn(2, 4, 3, 5)).codes
    assert codes.shape == (2, 3, 5) and quantizer.lookup(codes).shape == (2, 4, 3, 5)
    assert quantizer.layout((3, 5)).flatten(codes).shape == (2, 15)


def test_dropout_cuts_the_sum_of_its_share_of_images_and_nothing_else() -> None:
    quantizer, z = spread(dropout=0.6), torch.randn(400, 4, 2, 2, requires_grad=True)
    result = quantizer(z)
    whole = quantizer.encode(z)
    assert torch.equal(result.codes, whole)
    vectors = [level.lookup(whole[..., i]) for i, level in enumerate(quantizer.levels)]
    sums = torch.stack([vectors[0], vectors[0] + vectors[1], vectors[0] + vectors[1] + vectors[2]])
    kept = (sums - result.features).abs().flatten(2).amax(2).argmin(0)
    assert torch.equal(result.features, sums[kept, torch.arange(400)])
    shares = torch.bincount(kept, minlength=3) / 400
    assert torch.allclose(shares, torch.tensor([0.3, 0.3, 0.4]), atol=0.08)
    total = result.features.sum() + sum(result.losses.values())
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(total, list(quantizer.parameters())))
    quantizer.eval()
    assert torch.equal(quantizer(z).features, quantizer.lookup(whole))


def test_wrong_settings_and_codes_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_codes: 2 numbers for 3 levels"):
        ResidualQuantizer(levels=3, num_codes=(8, 8))
    with pytest.raises(ConfigError, match="num_codes: a shared codebook has one size"):
        ResidualQuantizer(levels=2, num_codes=(8, 4), shared=True)
    with pytest.raises(ConfigError, match="dropout: needs at least 2 levels"):
        ResidualQuantizer(levels=1, dropout=0.1)
    with pytest.raises(ValueError, match="3 levels last"):
        spread().lookup(torch.zeros(1, 2, 2, 2, dtype=torch.long))
