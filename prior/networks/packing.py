"""Products of a few rows with a fixed weight, as in decoding token by token, in the fastest form at hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

Product = Callable[[Tensor], Tensor]
Residual = Callable[[Tensor, Tensor], Tensor]


def product(weight: Tensor, rows: int) -> Product:
    """`x (rows, in) -> x @ weight.T` for weight `(out, in)`. With oneDNN on a CPU it keeps a reordered copy.

    A product with so few rows is bound by reading the weight; plain gemm calls reach between a half and a fifth of the
    memory's speed, the reordered weight nearly all of it.
    """
    if not _packs(weight.device.type, weight.dtype):
        return lambda x: F.linear(x, weight)
    packed, op = torch.ops.mkldnn._reorder_linear_weight(weight, rows), torch.ops.mkldnn._linear_pointwise.default
    return lambda x: op(x, packed, None, "none", [], "")


def product_add(weight: Tensor, rows: int) -> Residual:
    """`x (rows, in), y (rows, out) -> y + x @ weight.T`, as `product`."""
    if not _packs(weight.device.type, weight.dtype):
        return lambda x, y: y + F.linear(x, weight)
    packed, op = torch.ops.mkldnn._reorder_linear_weight(weight, rows), torch.ops.mkldnn._linear_pointwise.binary
    return lambda x, y: op(x, y, packed, None, "add")


@cache
def _packs(device: str, dtype: torch.dtype) -> bool:
    # These operators are torch's own, for compiled graphs, and undocumented: tried once, and used if they are right.
    if device != "cpu" or not torch.backends.mkldnn.is_available() or dtype not in (torch.float32, torch.bfloat16):
        return False
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        weight, x = torch.eye(16, 8, dtype=dtype), torch.arange(16, dtype=dtype).reshape(2, 8)
        packed, op = torch.ops.mkldnn._reorder_linear_weight(weight, 2), torch.ops.mkldnn._linear_pointwise
        plain = op(x, packed, None, "none", [], "")
        added = op.binary(x, plain, packed, None, "add")
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):
        return False
    return torch.equal(plain, F.pad(x, (0, 8))) and torch.equal(added, 2 * plain)
