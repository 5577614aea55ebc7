"""Lookup-free quantization: a code is the signs of its features (Yu et al., arXiv 2310.05737, section 3)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tokenizers_vq.quantizers.signs import BitsConfig, SignQuantizer


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


class LfqQuantizer(SignQuantizer):
    """Features `(B, bits, *grid)` to their signs, -1 or 1 (0 gives -1); bit i of the code is channel i's.

    Losses: `commitment` = beta |z - sign(z)|^2, mean over elements; `entropy` = weight (mean entropy - entropy of the
    mean) of the codes' probabilities softmax(-|z - c|^2 / temperature) (eq. 4 and 5; `bits.bit_entropies`). The
    estimator is straight-through. Fields: `LfqQuantizerConfig`. Stats in training: `perplexity`, and both entropies.
    """

    config: LfqQuantizerConfig

    def __init__(self, **fields: Any) -> None:
        super().__init__(LfqQuantizerConfig(**fields), scale=1.0)
