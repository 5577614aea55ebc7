"""The contracts of encoders and decoders."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from torch import Tensor, nn


class Encoder(nn.Module):
    """Pixels `(B, C, H, W)` -> features `(B, D, *grid)`."""

    @abstractmethod
    def grid(self, height: int, width: int) -> tuple[int, ...]:
        """Grid of the features. Raises `ValueError` naming the nearest sizes that work."""

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """Encode."""

    def trunk_blocks(self) -> Iterator[nn.Module]:
        """Modules that compile one by one, in place."""
        yield from ()


class Decoder(nn.Module):
    """Features `(B, D, *grid)` -> output, which `render` turns into pixels `(B, C, H, W)`."""

    head: nn.Module
    """the last linear map; its `weight` is the last layer of the adaptive weight; stays uncompiled"""

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Decode."""

    def render(self, output: Tensor) -> Tensor:
        """Output -> pixels; the identity where the output is pixels."""
        return output

    def trunk_blocks(self) -> Iterator[nn.Module]:
        """Modules that compile one by one, in place."""
        yield from ()
