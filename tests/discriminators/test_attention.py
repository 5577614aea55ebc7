"""SAGAN's discriminator: where attention looks, spectral norm against an SVD, the bound of L2 attention."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tokenizers_vq.discriminators import AttentionConfig
from tokenizers_vq.discriminators.attention import SelfAttention


def lambert(x: float) -> float:
    """W(x) for x >= 0 by Newton's method: `t exp(t + 1) = n` has the solution `W(n / e)`."""
    w = math.log1p(x)
    for _ in range(50):
        w -= (w * math.exp(w) - x) / (math.exp(w) * (w + 1))
    return w


def bound(attention: SelfAttention, positions: int) -> float:
    """Kim et al., theorem 3.2, with this module's matrices."""
    norms = [
        torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item()
        for layer in (attention.query, attention.value, attention.out)
    ]
    return math.sqrt(positions) * (4 * lambert((positions - 1) / math.e) + 1) * math.prod(norms)


def slope(attention: SelfAttention, features: Tensor) -> float:
    """Spectral norm of its Jacobian."""
    jacobian = torch.autograd.functional.jacobian(attention.attend, features)
    return torch.linalg.matrix_norm(jacobian.reshape(features.numel(), -1), 2).item()


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
def test_l2_attention_stays_under_its_bound(scale: float) -> None:
    torch.manual_seed(0)
    attention = SelfAttention(16, "l2").double().eval()
    features = scale * torch.randn(1, 16, 3, 4, dtype=torch.float64)
    assert 0 < slope(attention, features) <= bound(attention, 12)


def test_dot_product_attention_has_no_such_bound() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(16, "dot").double().eval()
    features = torch.randn(1, 16, 4, 4, dtype=torch.float64)
    features[..., 0, 0] = 0  # it hears all alike, and a small step makes it choose among what is told
    slopes = [slope(attention, scale * features) for scale in (10, 100)]
    assert slopes[1] > 50 * slopes[0]


def test_what_attention_tells_is_the_mean_of_what_is_near() -> None:
    """By hand: two groups of positions far apart, each of which hears its own."""
    attention = SelfAttention(8, "l2").double().eval()
    with torch.no_grad():
        features = torch.zeros(1, 8, 2, 2, dtype=torch.float64)
        features[..., 1] = 1e4 * attention.query.weight.flatten()[:, None].expand(8, 2)
        told = attention.attend(features)
        expected = attention.out(attention.value(attention.query(features)))
    torch.testing.assert_close(told, expected)


def test_spectral_norm_against_an_svd() -> None:
    torch.manual_seed(0)
    discriminator = AttentionConfig(width=4, resolution=8).build(3, (32, 32))
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        for _ in range(300):  # one power iteration a training forward
            discriminator(images)
    layers = [m for m in discriminator.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 3 * 3 + 4 + 1
    for layer in layers:
        original = layer.parametrizations.weight.original.flatten(1)  # type: ignore[union-attr]
        singular = torch.linalg.svdvals(original)[0]
        torch.testing.assert_close(layer.eval().weight.flatten(1), original / singular, rtol=2e-2, atol=1e-4)


def test_the_gate_begins_shut_and_the_resolution_is_a_block_of_the_image() -> None:
    discriminator = AttentionConfig(width=4, resolution=16).build(3, (64, 96))
    assert not discriminator.attention.gate
    judgement = discriminator(torch.rand(2, 3, 64, 96))
    shapes = [(4, 32, 48), (8, 16, 24), (16, 8, 12), (32, 4, 6)]
    assert [tuple(f.shape[1:]) for f in judgement.features] == shapes
    assert judgement.logits[0].shape == (2, 1) and discriminator.feature_width == 32
    with pytest.raises(
        ValueError, match=r"resolution: 32 is not the side .* images of 32x48 have: set it to 16 or 8 or 4$"
    ):
        AttentionConfig().build(3, (32, 48))
