"""Binary spherical quantization: signs on the unit sphere (Zhao et al., arXiv 2406.07548)."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tokenizers_vq.quantizers.signs import BitsConfig, SignQuantizer


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


class BsqQuantizer(SignQuantizer):
    """Features `(B, bits, *grid)`, u = z / |z|, to sign(u) / sqrt(bits), which lies on the unit sphere too.

    Losses: `commitment` = beta |u - q|^2, mean over elements (left out at beta 0); `entropy` as `LfqQuantizer`'s, of
    softmax(-|u - c|^2 / temperature) (eq. 8 to 10). The estimator is straight-through to u. Zero features stay zero
    under the normalisation. Fields: `BsqQuantizerConfig`. Stats in training: `perplexity`, and both entropies.
    """

    config: BsqQuantizerConfig

    def __init__(self, **fields: Any) -> None:
        config = BsqQuantizerConfig(**fields)
        super().__init__(config, scale=config.bits**-0.5)

    def confine(self, features: Tensor) -> Tensor:
        """u = z / |z|."""
        return F.normalize(features, dim=1)

    def commitment(self, source: Tensor, target: Tensor) -> dict[str, Tensor]:
        """beta |u - q|^2, mean over elements; none at beta 0."""
        return super().commitment(source, target) if self.config.beta else {}
