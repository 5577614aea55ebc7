"""The entropy of soft assignments: its value, its gradients, its memory, and that two processes equal one."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.processes import in_processes
from tokenizers_vq.quantizers import VectorQuantizer, entropy
from tokenizers_vq.quantizers.entropy import entropy_loss


def naive(x: Tensor, codebook: Tensor, temperature: float) -> Tensor:
    p = F.softmax(-(x[:, None] - codebook).square().sum(2) / temperature, dim=1)
    mean = p.mean(0)
    return -torch.special.xlogy(p, p).sum(1).mean() + (mean * torch.log(mean + 1e-5)).sum()


@pytest.mark.parametrize("block", [1 << 21, 100])
def test_value_and_gradients_are_those_of_the_definition(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(entropy, "_BLOCK", block)
    x = torch.randn(50, 4, dtype=torch.float64, requires_grad=True)
    codebook = torch.randn(13, 4, dtype=torch.float64, requires_grad=True)
    ours, wanted = entropy_loss(x, codebook, 0.7), naive(x, codebook, 0.7)
    assert torch.isclose(ours, wanted, rtol=1e-10)
    for got, expected in zip(
        torch.autograd.grad(3 * ours, (x, codebook)), torch.autograd.grad(3 * wanted, (x, codebook)), strict=True
    ):
        assert torch.allclose(got, expected, rtol=1e-8, atol=1e-12)


def test_sure_and_even_choices_are_the_least_and_one_code_for_all_is_zero() -> None:
    codebook = torch.eye(8) * 10
    assert entropy_loss(codebook.repeat(4, 1), codebook, 0.01).item() == pytest.approx(-math.log(8), abs=1e-3)
    assert entropy_loss(codebook[:1].repeat(32, 1), codebook, 0.01).item() == pytest.approx(0, abs=1e-3)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that was made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))])
        return out


def test_all_pairs_are_never_held() -> None:
    x, codebook = torch.randn(2048, 4, requires_grad=True), torch.randn(4096, 4, requires_grad=True)
    with Largest() as largest:
        entropy_loss(x, codebook, 0.1).backward()
    assert largest.elements <= entropy._BLOCK < x.shape[0] * codebook.shape[0]


def test_without_a_weight_there_is_no_such_loss() -> None:
    z = torch.randn(2, 4, 3, 3)
    assert "entropy" not in VectorQuantizer(num_codes=8, dim=4)(z).losses
    assert "entropy" in VectorQuantizer(num_codes=8, dim=4, entropy_weight=0.1)(z).losses


def test_the_temperature_and_the_weight_are_the_configs() -> None:
    quantizer = VectorQuantizer(num_codes=8, dim=4, codebook="ema", entropy_weight=0.3, entropy_temperature=2.0)
    z = torch.randn(2, 4, 3, 3, requires_grad=True)
    wanted = 0.3 * naive(z.movedim(1, -1).reshape(-1, 4), quantizer.weight.clone(), 2.0)
    loss = quantizer(z).losses["entropy"]
    assert torch.isclose(loss, wanted, rtol=1e-4)
    assert torch.allclose(torch.autograd.grad(loss, z)[0], torch.autograd.grad(wanted, z)[0], atol=1e-6)


def _gradients(rank: int, world: int, weight: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    quantizer = VectorQuantizer(num_codes=48, dim=6, distance="cosine", entropy_weight=0.1, entropy_temperature=0.5)
    quantizer.weight.data.copy_(weight)
    share = len(z) // world
    own = z[rank * share : (rank + 1) * share].clone().requires_grad_()
    loss = quantizer(own).losses["entropy"]
    return loss.detach(), *torch.autograd.grad(loss, (own, quantizer.weight))


def test_two_processes_equal_one() -> None:
    weight, z = torch.randn(48, 6), torch.randn(4, 6, 5, 7)
    loss, to_z, to_weight = _gradients(0, 1, weight, z)
    (first, first_z, first_weight), (second, second_z, second_weight) = in_processes(2, _gradients, weight, z)
    assert torch.allclose(first, loss, atol=1e-6) and torch.allclose(second, loss, atol=1e-6)
    # DDP averages over processes; a process's features appear in its own loss's average alone.
    assert torch.allclose((first_weight + second_weight) / 2, to_weight, atol=1e-7)
    assert torch.allclose(torch.cat([first_z, second_z]) / 2, to_z, atol=1e-7)
