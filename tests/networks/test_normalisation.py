"""Our group normalisation gives torch's values and gradients, in either layout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tokenizers_vq.networks.normalisation import GroupNorm


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mixed", [True, False])
def test_values_and_gradients_are_torch_s(layout: torch.memory_format, dtype: torch.dtype, mixed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    ours, torchs = GroupNorm(4, 12, eps=1e-3), nn.GroupNorm(4, 12, eps=1e-3).double()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, generator=generator)
    ours = ours if mixed and dtype == torch.bfloat16 else ours.to(dtype)
    torchs.load_state_dict(ours.state_dict())
    images, seen = (
        torch.randn(3, 12, 5, 7, generator=generator).add_(0.5).to(dtype, memory_format=layout) for _ in "ab"
    )
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    results = []
    for norm, double in ((ours, False), (torchs, True)):
        x = (images.double() if double else images).clone(memory_format=torch.preserve_format).requires_grad_()
        y = norm(x)
        results.append([y, *torch.autograd.grad(y, [x, *norm.parameters()], seen.to(y.dtype))])
    for mine, reference in zip(*results, strict=True):
        assert torch.linalg.vector_norm(mine - reference) <= tolerance * torch.linalg.vector_norm(reference)


@pytest.mark.parametrize("offset", [0.0, 30.0, -1000.0])
def test_channels_last_keeps_its_digits_far_from_zero(offset: float) -> None:
    norm = GroupNorm(8, 8)
    x = torch.randn(2, 8, 9, 14) + offset * torch.arange(8).view(8, 1, 1)
    exact = torch.nn.functional.group_norm(x.double(), 8)
    with torch.no_grad():
        error = (norm(x.contiguous(memory_format=torch.channels_last)) - exact).abs().max()
    assert error <= 1e-6 + 1e-6 * abs(offset)


@pytest.mark.parametrize("offset", [0.0, 3.0, 30.0])
def test_half_precision_is_normed_to_its_last_digit(offset: float) -> None:
    """What an accelerator takes; on small maps, since a CPU's sums of large ones are rougher than a GPU's."""
    norm = GroupNorm(4, 16, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (torch.randn(2, 16, 9, 7) + offset).to(torch.bfloat16, memory_format=torch.channels_last)
    with torch.no_grad():
        found = norm._half(x)
        exact = nn.functional.group_norm(x.float(), 4, norm.weight, norm.bias, 1e-6)
    assert found.dtype == torch.bfloat16 and found.is_contiguous(memory_format=torch.channels_last)
    assert (found.float() - exact).abs().max() <= 1.01 * (exact.bfloat16().float() - exact).abs().max() + 1e-4
