"""Quantizers: features to codes and back. One a file; their configs form a union on `kind`."""

from typing import Annotated

from pydantic import Field

from tokenizers_vq.quantizers.base import Quantizer
from tokenizers_vq.quantizers.gumbel import GumbelQuantizer, GumbelQuantizerConfig
from tokenizers_vq.quantizers.residual import ResidualQuantizer, ResidualQuantizerConfig
from tokenizers_vq.quantizers.vector import VectorQuantizer, VectorQuantizerConfig

QuantizerConfig = Annotated[
    # fmt: off
    VectorQuantizerConfig | GumbelQuantizerConfig | ResidualQuantizerConfig,
    # fmt: on
    Field(discriminator="kind"),
]

__all__ = [
    "GumbelQuantizer",
    "Quantizer",
    "QuantizerConfig",
    "ResidualQuantizer",
    "VectorQuantizer",
    "VectorQuantizerConfig",
]
