"""FSDP: weights, gradients and optimizer state in shards, one a process (torch's `fully_shard`; arXiv 2304.11277).

`accelerate launch --use_fsdp` asks for it. Accelerate's own FSDP is for GPUs alone and pickles its checkpoints, so the
shards are torch's, on whatever the processes run on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tokenizers_vq import distributed
from tokenizers_vq.devices import processes

M = TypeVar("M", bound=nn.Module)
_FLAG = "ACCELERATE_USE_FSDP"
_asked = False


def take_over() -> None:
    """Note whether the launcher asks for FSDP, and keep accelerate from doing it."""
    global _asked
    if (said := os.environ.pop(_FLAG, None)) is not None:
        _asked = said.lower() in ("true", "1") and processes().world > 1


def asked() -> bool:
    """Whether this run is to be sharded."""
    return _asked


def shard(module: nn.Module, blocks: Iterable[nn.Module], methods: Sequence[str] = ()) -> None:
    """Shard a module over all processes, in place; each of its blocks is gathered by itself while it computes.

    `methods`: those beside `forward` that compute with its weights. Copies are to be made before.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    device = next(module.parameters()).device
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    for name in methods:
        register_fsdp_forward_method(module, name)


def sharded(module: nn.Module) -> bool:
    """Whether `shard` was called with it."""
    return any(is_shard(parameter) for parameter in module.parameters())


def is_shard(value: Any) -> bool:
    """Whether a tensor is one process's part of a larger one."""
    return isinstance(value, Tensor) and hasattr(value, "to_local")


def whole(module: M, build: Callable[[], M]) -> M | None:
    """A module as it is; of a sharded one, a whole copy on the CPU in the first process, and None in the others.

    Called by all processes. `build` gives an empty one.
    """
    if not sharded(module):
        return module
    first, state = distributed.rank() == 0, {}
    for name, value in module.state_dict().items():
        full = value.full_tensor() if is_shard(value) else value  # all processes give their parts
        if first:
            state[name] = full.detach().cpu()
    if not first:
        return None
    made = build()
    made.load_state_dict(state)
    return made.eval()


def norm(value: Any) -> Tensor:
    """A norm of gradients as a plain tensor, whole in every process."""
    found = torch.as_tensor(value).detach()
    return found.full_tensor() if is_shard(found) else found  # type: ignore[attr-defined]


def placed(value: Tensor, like: Any, *, local: bool) -> Tensor:
    """A plain tensor as `like`, a shard, is placed; `local`: it is this process's part already, else all of it."""
    from torch.distributed.tensor import DTensor

    mesh, placements = like.device_mesh, like.placements
    if not local:
        parts = value.chunk(mesh.size(), dim=0)
        value = parts[mesh.get_local_rank()] if mesh.get_local_rank() < len(parts) else value[:0]
    value = value.to(like.device).contiguous()
    return DTensor.from_local(value, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def fill(part: Any, state: dict[str, Any], *, local: bool) -> None:
    """`part.load_state_dict(state)` of plain tensors; where the part is sharded, each goes to its place."""
    if isinstance(part, nn.Module):
        own = part.state_dict()
        state = {
            name: placed(value, own[name], local=local) if is_shard(own.get(name)) else value
            for name, value in state.items()
        }
    elif any(is_shard(one) for group in part.param_groups for one in group["params"]):
        state = {**state, "state": _of_optimizer(part, state, local)}
    part.load_state_dict(state)


def _of_optimizer(optimizer: Any, state: dict[str, Any], local: bool) -> dict[Any, Any]:
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    found = dict(state["state"])
    for number, parameter in zip(numbers, parameters, strict=True):
        if is_shard(parameter) and number in found:
            found[number] = {
                name: placed(value, parameter, local=local) if isinstance(value, Tensor) and value.ndim else value
                for name, value in found[number].items()
            }
    return found


def gathered(value: Any) -> list[Any]:
    """Small plain data of all processes, by their ranks."""
    found: list[Any] = [None] * distributed.world_size()
    if len(found) == 1:
        return [value]
    dist.all_gather_object(found, value)
    return found
