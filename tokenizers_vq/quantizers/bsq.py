"""Binary spherical quantization: signs on the unit sphere (Zhao et al., arXiv 2406.07548)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tokenizers_vq.codes import Quantized
from tokenizers_vq.quantizers.base import check_codes, straight_through
from tokenizers_vq.quantizers.bits import pack, unpack
from tokenizers_vq.quantizers.implicit import ImplicitQuantizer, as_given, perplexity
from tokenizers_vq.quantizers.lfq import BitsConfig, entropy_term


class BsqQuantizerConfig(BitsConfig):
    """Signs of the normalised features, divided by sqrt(bits)."""

    kind: Literal["bsq"] = "bsq"
    beta: float = 0.0
    """weight of the commitment term; normalised, the error is bounded without it"""
    entropy_temperature: float = Field(default=0.02, gt=0)
    """squared distance that divides the probability of a code by e (entropy term); 2 / the paper's tau, 100"""
    entropy_group: int = Field(default=1, ge=1, le=18)
    """bits whose joint distribution counts in the batch's entropy; 1 = each bit by itself, as in the paper"""

    def build(self) -> BsqQuantizer:
        """The quantizer."""
        return BsqQuantizer(**self.arguments())


class BsqQuantizer(ImplicitQuantizer):
    """Features `(B, bits, *grid)`, u = z / |z|, to sign(u) / sqrt(bits), which lies on the unit sphere too.

    Losses: `commitment` = beta |u - q|^2, mean over elements (left out at beta 0); `entropy` as `LfqQuantizer`'s, of
    softmax(-|u - c|^2 / temperature) (eq. 8 to 10). The estimator is straight-through to u. Zero features stay zero
    under the normalisation. Fields: `BsqQuantizerConfig`. Stats in training: `perplexity`, and both entropies.
    """

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.config = BsqQuantizerConfig(**fields)
        self.in_dim = self.dim = self.config.bits
        self.num_codes = 2**self.config.bits

    def encode(self, features: Tensor) -> Tensor:
        """`(B, bits, *grid)` -> int64 `(B, *grid)`. Raises `ValueError` for non-finite features."""
        self._check(features)
        return pack(features.detach() > 0)

    def lookup(self, codes: Tensor) -> Tensor:
        """int64 `(B, *grid)` -> float32 `(B, bits, *grid)`. Raises `ValueError` for codes out of range."""
        check_codes(codes, self.num_codes)
        return unpack(codes, self.dim) * self.dim**-0.5

    def forward(self, features: Tensor) -> Quantized:
        """`(B, bits, *grid)` -> `Quantized`. Raises `ValueError` for non-finite features, in training everywhere."""
        codes = self.encode(features)
        with torch.autocast(features.device.type, enabled=False):
            u = F.normalize(features.float(), dim=1)
            target = unpack(codes, self.dim) * self.dim**-0.5
            losses = {"commitment": self.config.beta * F.mse_loss(u, target)} if self.config.beta else {}
            logits = u * (4 * self.dim**-0.5 / self.config.entropy_temperature)
            entropy, stats = entropy_term(self.config, logits)
            quantized = straight_through(target, u)
        if self.training:
            stats["perplexity"] = perplexity(codes, self.num_codes)
        return Quantized(as_given(quantized, features), codes, losses | entropy, stats if self.training else {})
