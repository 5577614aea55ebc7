"""The only collectives: a differentiable sum and mean over processes. Without a process group they change nothing."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes, 1 where `torch.distributed` is not set up."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process, 0 where `torch.distributed` is not set up."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Every process's loss depends on the sum; DDP then averages over processes, which makes this the exact
        # gradient of the mean loss.
        return _AllReduce.apply(gradient)


def sum(value: Tensor) -> Tensor:
    """Sum of `value` (any shape, equal in all processes) over processes; gradients flow to every process."""
    return _AllReduce.apply(value) if world_size() > 1 else value


def mean(value: Tensor) -> Tensor:
    """Mean of `value` over processes; gradients flow to every process."""
    return sum(value) / world_size()


def from_first(value: Tensor) -> Tensor:
    """Process 0's `value` in every process: random draws made by all, agreed on by all."""
    return sum(value if rank() == 0 else torch.zeros_like(value))
