"""Gumbel-softmax: its samples, its KL term, the two ways in."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.processes import in_processes
from tokenizers_vq.config import ConfigError
from tokenizers_vq.quantizers import GumbelQuantizer


def one_hot_codebook(**fields: object) -> GumbelQuantizer:
    """Logits in, relaxed samples out."""
    quantizer = GumbelQuantizer(num_codes=4, dim=4, project=False, **fields)
    with torch.no_grad():
        quantizer.weight.copy_(torch.eye(4))
    return quantizer


@pytest.mark.parametrize("hard", [False, True])
def test_samples_follow_the_softmax_whatever_the_temperature(hard: bool) -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    for temperature in (0.1, 1.0):
        quantizer = one_hot_codebook(straight_through=hard, temperature=temperature)
        samples = quantizer(logits.view(1, 4, 1, 1).expand(1, 4, 100, 200)).features
        assert torch.allclose(samples.sum(1), torch.ones(()), atol=1e-5)
        chosen = F.one_hot(samples.argmax(1), 4).float().mean((0, 1, 2))
        assert torch.allclose(chosen, logits.softmax(0), atol=0.02)
        assert (samples.amax(1).mean() > 0.999) == hard or temperature == 0.1


def test_a_low_temperature_is_harder_and_the_gradient_is_the_relaxed_sample_s() -> None:
    z = torch.randn(2, 4, 5, 7, requires_grad=True)
    upstream = torch.randn(2, 4, 5, 7)
    sharpness, gradients = [], []
    for fields in ({"temperature": 2.0}, {"temperature": 0.2}, {"temperature": 0.2, "straight_through": True}):
        torch.manual_seed(1)
        samples = one_hot_codebook(**fields)(z).features
        sharpness.append(samples.amax(1).mean().item())
        gradients.append(torch.autograd.grad((samples * upstream).sum(), z)[0])
    assert sharpness[0] < sharpness[1] < sharpness[2] == pytest.approx(1.0)
    assert torch.allclose(gradients[1], gradients[2], atol=1e-5) and gradients[1].abs().sum() > 0


def test_the_kl_term_is_that_to_the_uniform_distribution() -> None:
    quantizer = GumbelQuantizer(num_codes=10, dim=4, in_dim=6, kl_weight=0.5).eval()
    z = torch.randn(2, 6, 5, 7)
    log = quantizer.projection(z.movedim(1, -1)).double().log_softmax(-1)  # type: ignore[misc]
    wanted = 0.5 * F.kl_div(torch.full_like(log, -math.log(10)), log, log_target=True, reduction="sum") / (2 * 35)
    assert torch.isclose(quantizer(z).losses["kl"].double(), wanted)


def test_without_projection_the_features_are_logits() -> None:
    assert GumbelQuantizer(num_codes=10, dim=4, project=False).in_dim == 10
    assert GumbelQuantizer(num_codes=10, dim=4).in_dim == 4
    with pytest.raises(ConfigError, match="in_dim: without projection"):
        GumbelQuantizer(num_codes=10, dim=4, in_dim=6, project=False)


def _ages(rank: int, world: int) -> torch.Tensor:
    quantizer = GumbelQuantizer(num_codes=16, dim=4, project=False)
    for step in range(5):
        batch = torch.randn(4, 16, 2, 3, generator=torch.Generator().manual_seed(step))
        quantizer(batch[rank * 4 // world : (rank + 1) * 4 // world])
    return quantizer.age


def test_two_processes_count_what_one_counts() -> None:
    alone = _ages(0, 1)
    assert alone.max() > 0
    assert all(torch.equal(ages, alone) for ages in in_processes(2, _ages))
