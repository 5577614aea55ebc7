"""Lookup-free quantization: a code is the signs of its features (Yu et al., arXiv 2310.05737, section 3)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tokenizers_vq.codes import Quantized
from tokenizers_vq.config import Config
from tokenizers_vq.quantizers.base import check_codes, straight_through
from tokenizers_vq.quantizers.bits import bit_entropies, pack, unpack
from tokenizers_vq.quantizers.implicit import ImplicitQuantizer, as_given, perplexity


class BitsConfig(Config):
    """Fields of quantizers of sign bits."""

    bits: int = Field(default=18, ge=1, le=62)
    """bits of a code, and channels of the features; there are 2^bits codes"""
    entropy_weight: float = Field(default=0.1, ge=0)
    """weight of the entropy term; 0 = none"""
    sample_entropy: float = Field(default=1.0, ge=0)
    """inside the entropy term: weight of each vector's entropy, which is made low"""
    batch_entropy: float = Field(default=1.0, ge=0)
    """inside the entropy term: weight of the whole batch's entropy, which is made high"""
    entropy_group: int = Field(default=9, ge=1, le=18)
    """bits whose joint distribution counts in the batch's entropy; `bits` or more = exact, 1 = each bit by itself"""


class LfqQuantizerConfig(BitsConfig):
    """Signs of the features."""

    kind: Literal["lfq"] = "lfq"
    beta: float = 0.25
    """weight of the commitment term"""
    entropy_temperature: float = Field(default=0.01, gt=0)
    """squared distance that divides the probability of a code by e (entropy term); lower = harder choices"""

    def build(self) -> LfqQuantizer:
        """The quantizer."""
        return LfqQuantizer(**self.arguments())


class LfqQuantizer(ImplicitQuantizer):
    """Features `(B, bits, *grid)` to their signs, -1 or 1 (0 gives -1); bit i of the code is channel i's.

    Losses: `commitment` = beta |z - sign(z)|^2, mean over elements; `entropy` = weight (mean entropy - entropy of the
    mean) of the codes' probabilities softmax(-|z - c|^2 / temperature) (eq. 4 and 5; `bits.bit_entropies`). The
    estimator is straight-through. Fields: `LfqQuantizerConfig`. Stats in training: `perplexity`, and both entropies.
    """

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.config = LfqQuantizerConfig(**fields)
        self.in_dim = self.dim = self.config.bits
        self.num_codes = 2**self.config.bits

    def encode(self, features: Tensor) -> Tensor:
        """`(B, bits, *grid)` -> int64 `(B, *grid)`. Raises `ValueError` for non-finite features."""
        self._check(features)
        return pack(features.detach() > 0)

    def lookup(self, codes: Tensor) -> Tensor:
        """int64 `(B, *grid)` -> float32 `(B, bits, *grid)`. Raises `ValueError` for codes out of range."""
        check_codes(codes, self.num_codes)
        return unpack(codes, self.dim)

    def forward(self, features: Tensor) -> Quantized:
        """`(B, bits, *grid)` -> `Quantized`. Raises `ValueError` for non-finite features, in training everywhere."""
        codes = self.encode(features)
        with torch.autocast(features.device.type, enabled=False):
            z, target = features.float(), unpack(codes, self.dim)
            losses = {"commitment": self.config.beta * F.mse_loss(z, target)}
            # -|z - c|^2 / t differs by 4 z / t between c = 1 and c = -1.
            entropy, stats = entropy_term(self.config, z * (4 / self.config.entropy_temperature))
            quantized = straight_through(target, z)
        if self.training:
            stats["perplexity"] = perplexity(codes, self.num_codes)
        return Quantized(as_given(quantized, features), codes, losses | entropy, stats if self.training else {})


def entropy_term(config: BitsConfig, logits: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and stats of bits `(B, bits, *grid)` with these logits; empty where the term has no weight."""
    if not config.entropy_weight:
        return {}, {}
    sample, batch = bit_entropies(logits.movedim(1, -1).reshape(-1, config.bits), config.entropy_group)
    loss = config.entropy_weight * (config.sample_entropy * sample - config.batch_entropy * batch)
    return {"entropy": loss}, {"sample_entropy": sample.detach(), "batch_entropy": batch.detach()}
