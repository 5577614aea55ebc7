"""The contract of a quantizer, the straight-through estimator, and the checks that quantizers share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokenizers_vq import distributed
from tokenizers_vq.codes import CodeLayout, Codes, Quantized
from tokenizers_vq.quantizers.search import check_finite


class Quantizer(nn.Module):
    """Features `(B, in_dim, *grid)` -> codes -> features `(B, dim, *grid)`; float32 inside, whatever the autocast.

    State lives in buffers. `encode` and `lookup` have no state and no noise, in train mode too.
    """

    in_dim: int
    """width of the features that `encode` and `forward` take"""
    dim: int
    """width of a code's vector, which `lookup` gives"""
    training_state: ClassVar[tuple[str, ...]] = ()
    """buffers that neither `encode` nor `lookup` reads; left out of the fingerprint"""

    @abstractmethod
    def layout(self, grid: tuple[int, ...]) -> CodeLayout:
        """Layout of the codes on a grid. Raises `ValueError` for a grid that this quantizer cannot take."""

    @abstractmethod
    def encode(self, features: Tensor) -> Codes:
        """`(B, in_dim, *grid)` -> int64 codes."""

    @abstractmethod
    def lookup(self, codes: Any) -> Tensor:
        """Codes, as `encode` gives them -> `(B, dim, *grid)`."""

    @abstractmethod
    def forward(self, features: Tensor) -> Quantized:
        """Encode, look up, estimate gradients, compute losses; in train mode one update of the state."""


def straight_through(quantized: Tensor, features: Tensor) -> Tensor:
    """Value of `quantized`, bitwise; gradient of the identity on `features` (arXiv 1308.3432)."""
    return quantized.detach() + (features - features.detach())


def join_levels(codes: Sequence[Tensor]) -> Tensor:
    """One `(B, *grid)` a level -> `(B, *grid, L)`; of one level, `(B, *grid)`."""
    return torch.stack(list(codes), dim=-1) if len(codes) > 1 else codes[0]


def split_levels(codes: Tensor, levels: int) -> Sequence[Tensor]:
    """The inverse of `join_levels`. Raises `ValueError` for another number of levels."""
    if levels > 1 and codes.shape[-1] != levels:
        raise ValueError(f"codes must have {levels} levels last, got {tuple(codes.shape)}")
    return codes.unbind(-1) if levels > 1 else [codes]


def training_buffers(module: nn.Module) -> set[str]:
    """Names of a module's buffers that only training reads, those of parts inside included."""
    return {
        f"{name}.{buffer}" if name else buffer
        for name, part in module.named_modules()
        for buffer in getattr(part, "training_state", ())
    }


def check_codes(codes: Tensor, num_codes: int) -> None:
    """Raises `ValueError` (values: eager only) for codes that are no integers in [0, K), where a GPU would abort."""
    if codes.is_floating_point():
        raise ValueError(f"codes must be int64 in [0, {num_codes}), got {codes.dtype}; convert with .long()")
    if codes.numel() and not torch.compiler.is_compiling():
        low, high = (int(bound) for bound in codes.aminmax())
        if low < 0 or high >= num_codes:
            raise ValueError(f"codes must lie in [0, {num_codes}), got values from {low} to {high}")


def check_in_all_processes(features: Tensor) -> None:
    """Raises `ValueError` in every process where one process' features are NaN or infinite.

    One process' error would stop it alone, and leave the others waiting in the next sum.
    """
    if distributed.world_size() > 1:
        bounds = 0 * torch.stack(torch.aminmax(features.detach()))
        check_finite(distributed.sum(bounds), "features to quantize hold")
