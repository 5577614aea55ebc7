"""Gradient checkpointing: blocks are computed anew in the backward pass (arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def compute_anew(blocks: Iterable[nn.Module]) -> None:
    """Keep of each block's forward its inputs alone; gradients, and what dropout drops, stay the same.

    Blocks must not change buffers as they compute: they would change twice.
    """
    for block in blocks:
        block.forward = MethodType(_forward, block)  # bound: a copy of the block calls its own


def _forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = partial(type(block).forward, block)
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
