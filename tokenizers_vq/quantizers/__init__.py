"""Quantizers: features to codes and back. One a file; their configs form a union on `kind`."""

from tokenizers_vq.quantizers.base import Quantizer
from tokenizers_vq.quantizers.vector import VectorQuantizer, VectorQuantizerConfig

QuantizerConfig = VectorQuantizerConfig

__all__ = ["Quantizer", "QuantizerConfig", "VectorQuantizer", "VectorQuantizerConfig"]
