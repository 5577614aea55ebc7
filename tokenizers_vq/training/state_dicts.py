"""State dicts as plain data: tensors for a safetensors file, everything around them for JSON. No pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenizers_vq.training.sharding import is_shard


def pack(state: Any) -> tuple[dict[str, Tensor], Any]:
    """A nest of dicts, lists, tuples, tensors and plain values as (tensors by name, JSON-able rest).

    Tensors are copies on the CPU, contiguous; the rest keeps the strides of those that were not. Raises `TypeError`
    for anything else, which only a pickle could hold. Of a sharded tensor the part of this process is kept, and marked.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _pack(state, "", tensors)


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        while name in tensors or not name:
            name += "_"
        if is_shard(value):
            tensors[name] = value.to_local().detach().cpu().contiguous().clone()  # type: ignore[attr-defined]
            return {"$tensor": name, "$shard": list(value.shape)}
        tensors[name] = torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())
        strides = {} if value.is_contiguous() else {"strides": list(value.stride())}
        return {"$tensor": name, **strides}
    if isinstance(value, Mapping):
        parts = [[key, _pack(part, f"{name}.{key}" if name else str(key), tensors)] for key, part in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return dict(parts)
        return {"$pairs": parts}  # the keys of JSON are strings, an optimizer's are numbers
    if isinstance(value, (list, tuple)):
        parts = [_pack(part, f"{name}.{i}" if name else str(i), tensors) for i, part in enumerate(value)]
        return {"$tuple": parts} if isinstance(value, tuple) else parts
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name}: a checkpoint holds tensors and plain values, this is a {type(value).__name__}")


def unpack(rest: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `pack` was given. Raises `ValueError` or `KeyError` where the two do not belong together."""
    if isinstance(rest, list):
        return [unpack(part, tensors) for part in rest]
    if not isinstance(rest, dict):
        return rest
    if "$tensor" in rest:
        return _laid_out(tensors[rest["$tensor"]], rest.get("strides"))
    if "$pairs" in rest:
        return {key: unpack(part, tensors) for key, part in rest["$pairs"]}
    if "$tuple" in rest:
        return tuple(unpack(part, tensors) for part in rest["$tuple"])
    return {key: unpack(part, tensors) for key, part in rest.items()}


def _laid_out(tensor: Tensor, strides: list[int] | None) -> Tensor:
    """The tensor in the memory layout that it had: sums of another order would not be bitwise the same."""
    if strides is None or len(strides) != tensor.ndim:
        return tensor
    order = sorted(range(tensor.ndim), key=lambda dim: strides[dim], reverse=True)
    dense = torch.empty([tensor.shape[dim] for dim in order], dtype=tensor.dtype)
    dense = dense.permute([order.index(dim) for dim in range(tensor.ndim)])
    if any(dense.stride(dim) != strides[dim] for dim in order if tensor.shape[dim] > 1):
        return tensor  # it had gaps or overlaps, which nothing computes on
    return dense.copy_(tensor)


def shards_in(rest: Any) -> set[str]:
    """Names of the tensors of which `pack` kept a part."""
    if isinstance(rest, dict):
        own = {rest["$tensor"]} if "$shard" in rest else set()
        return own.union(*(shards_in(part) for part in rest.values()))
    return set().union(*(shards_in(part) for part in rest)) if isinstance(rest, list) else set()
