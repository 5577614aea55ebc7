"""Batch norm in one process is torch's, bitwise; in two it is one process's on the whole batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.processes import in_processes
from tokenizers_vq.networks.normalisation import BatchNorm2d


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(4, 3, 5, 6, generator=generator) * 2 + 30
    return features, torch.randn(4, 3, 5, 6, generator=generator)


def forward_backward(norm: nn.BatchNorm2d, features: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    """Twice, so that running statistics run; the loss is a mean over the batch."""
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
    features = features.clone().requires_grad_()
    for _ in range(2):
        output = norm(features)
    (output.square() * upstream).sum((1, 2, 3)).mean().backward()
    assert features.grad is not None and norm.weight.grad is not None and norm.bias.grad is not None
    gradients = {"input": features.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    return {"output": output.detach(), **gradients, **dict(norm.named_buffers())}


def test_one_process_is_torchs() -> None:
    ours, theirs = (forward_backward(norm, *batch()) for norm in (BatchNorm2d(3), nn.BatchNorm2d(3)))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    norm = BatchNorm2d(3).eval()
    assert torch.equal(norm(batch()[0]), nn.BatchNorm2d(3).eval()(batch()[0]))


def of_a_share(rank: int, world: int) -> dict[str, Tensor]:
    features, upstream = (tensor.chunk(world)[rank] for tensor in batch())
    result = forward_backward(BatchNorm2d(3), features, upstream)
    assert BatchNorm2d(3)(features.bfloat16()).dtype == torch.bfloat16
    return result


def test_two_processes_equal_one() -> None:
    two = in_processes(2, of_a_share)
    one = forward_backward(nn.BatchNorm2d(3), *batch())
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(torch.cat([part["output"] for part in two]), one["output"], **close)
    # A process's loss is the mean over its half, so gradients at its own images weigh double.
    torch.testing.assert_close(torch.cat([part["input"] for part in two]) / 2, one["input"], **close)
    for name in ("weight", "bias"):
        torch.testing.assert_close((two[0][name] + two[1][name]) / 2, one[name], **close)
    for part in two:
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(part[name], one[name], **close)
