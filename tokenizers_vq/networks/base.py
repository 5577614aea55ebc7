"""The contracts of encoders and decoders."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Literal

from torch import Tensor, nn

from tokenizers_vq.config import Config

Distribution = Literal["pixels", "logit_laplace"]


class Encoder(nn.Module):
    """Pixels `(B, C, H, W)` -> features `(B, D, *grid)`."""

    leaks: ClassVar[bool] = True
    """whether features depend on pixels outside their cell of the grid"""

    @abstractmethod
    def grid(self, height: int, width: int) -> tuple[int, ...]:
        """Grid of the features. Raises `ValueError` naming the nearest sizes that work."""

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """Encode."""

    @property
    def last(self) -> nn.Parameter:
        """Weight of the last layer, in which the features are linear: the one that was registered last."""
        return [parameter for parameter in self.parameters() if parameter.ndim > 1][-1]

    def trunk_blocks(self) -> Iterator[nn.Module]:
        """Modules that compile, or are computed anew in the backward, one by one and in place."""
        yield from ()


class DecoderFields(Config):
    """What every decoder's config has."""

    output: Distribution = "pixels"
    """pixels, or 2C channels: location and log scale of a logit-Laplace density (arXiv 2102.12092, A.3)"""

    def output_channels(self, channels: int) -> int:
        """Channels of the output for images of `channels`."""
        return 2 * channels if self.output == "logit_laplace" else channels


class Decoder(nn.Module):
    """Features `(B, D, *grid)` -> output, which `render` turns into pixels `(B, C, H, W)`."""

    head: nn.Module
    """the last linear map; its `weight` is the last layer of the adaptive weight; stays uncompiled"""
    distribution: Distribution = "pixels"
    """what the output is"""
    prefixes: bool = False
    """of codes in a row: it decodes any first ones by themselves"""

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Decode."""

    def render(self, output: Tensor) -> Tensor:
        """Output -> pixels: the identity, or the logit-Laplace densities' medians, sigmoid(location)."""
        return output if self.distribution == "pixels" else output.chunk(2, dim=1)[0].sigmoid()

    def trunk_blocks(self) -> Iterator[nn.Module]:
        """Modules that compile, or are computed anew in the backward, one by one and in place."""
        yield from ()
