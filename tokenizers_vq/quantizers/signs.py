"""What quantizers of sign bits share: a code is the signs of the features, its vector those signs times a scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tokenizers_vq.codes import Quantized
from tokenizers_vq.quantizers.base import QuantizerFields, Remedy, as_given, check_codes, straight_through
from tokenizers_vq.quantizers.bits import bit_entropies, pack, unpack
from tokenizers_vq.quantizers.implicit import ImplicitQuantizer


class BitsConfig(QuantizerFields):
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

    def remedies(self) -> list[Remedy]:
        """The entropy term, fewer bits."""
        entropy = [] if self.entropy_weight else [Remedy(("entropy_weight=0.1",), "rewards even use")]
        return entropy + ([Remedy((f"bits={self.bits - 3}",), "fewer codes")] if self.bits > 8 else [])


class SignQuantizer(ImplicitQuantizer):
    """Features `(B, bits, *grid)` to their signs (0 gives -1) times `scale`; bit i of the code is channel i's.

    `config`: `BitsConfig` with `beta` and `entropy_temperature`. As a book of several levels, each is half the one
    before, as bits of a binary number are (ResidualLFQ of vector-quantize-pytorch).
    """

    finer = 0.5

    def __init__(self, config: Any, scale: float) -> None:
        super().__init__(2**config.bits)
        self.config, self.scale = config, scale
        self.in_dim = self.dim = config.bits

    @property
    def sign_bits(self) -> int:
        """All of them."""
        return self.config.bits

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """Of the commitment."""
        return {"commitment": self.config.beta}

    def commitment(self, source: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The loss beta |source - target|^2, mean over elements."""
        return {"commitment": self.config.beta * F.mse_loss(source, target)}

    def encode(self, features: Tensor) -> Tensor:
        """`(B, bits, *grid)` -> int64 `(B, *grid)`. Raises `ValueError` for non-finite features."""
        self._check(features)
        return pack(features.detach() > 0)

    def lookup(self, codes: Tensor) -> Tensor:
        """int64 `(B, *grid)` -> float32 `(B, bits, *grid)`. Raises `ValueError` for codes out of range."""
        check_codes(codes, self.num_codes)
        return self._vectors(codes)

    def _vectors(self, codes: Tensor) -> Tensor:
        return unpack(codes, self.dim) * self.scale

    def forward(self, features: Tensor) -> Quantized:
        """`(B, bits, *grid)` -> `Quantized`. Raises `ValueError` for non-finite features, in training everywhere."""
        codes = self.encode(features)
        with torch.autocast(features.device.type, enabled=False):
            found = self._forward(self.confine(features.float()), codes)
        return found._replace(features=as_given(found.features, features))

    def encode_confined(self, vectors: Tensor) -> Tensor:
        """The signs."""
        return pack(vectors.detach() > 0)

    def forward_confined(self, vectors: Tensor) -> Quantized:
        """Straight through the signs."""
        return self._forward(vectors, self.encode_confined(vectors))

    def _forward(self, source: Tensor, codes: Tensor) -> Quantized:
        target = self._vectors(codes)
        # -|x - c|^2 / t differs by 4 x s / t between c = s and c = -s.
        entropy, stats = entropy_term(self.config, source * (4 * self.scale / self.config.entropy_temperature))
        losses = self.commitment(source, target) | entropy
        stats = stats | self._stats(codes) if self.training else {}
        return Quantized(straight_through(target, source), codes, losses, stats)


def entropy_term(config: BitsConfig, logits: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and stats of bits `(B, bits, *grid)` with these logits; empty where the term has no weight."""
    if not config.entropy_weight:
        return {}, {}
    sample, batch = bit_entropies(logits.movedim(1, -1).reshape(-1, config.bits), config.entropy_group)
    loss = config.entropy_weight * (config.sample_entropy * sample - config.batch_entropy * batch)
    return {"entropy": loss}, {"sample_entropy": sample.detach(), "batch_entropy": batch.detach()}
