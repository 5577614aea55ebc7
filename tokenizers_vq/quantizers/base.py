"""The contract of a quantizer, and the straight-through estimator."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from tokenizers_vq.codes import CodeLayout, Quantized


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
    def encode(self, features: Tensor) -> Tensor:
        """`(B, in_dim, *grid)` -> int64 codes."""

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """Codes -> `(B, dim, *grid)`."""

    @abstractmethod
    def forward(self, features: Tensor) -> Quantized:
        """Encode, look up, estimate gradients, compute losses; in train mode one update of the state."""


def straight_through(quantized: Tensor, features: Tensor) -> Tensor:
    """Value of `quantized`, bitwise; gradient of the identity on `features` (arXiv 1308.3432)."""
    return quantized.detach() + (features - features.detach())
