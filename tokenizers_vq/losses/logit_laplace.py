"""The logit-Laplace likelihood (Ramesh et al., arXiv 2102.12092, appendix A.3), the reconstruction loss of DALL-E."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from tokenizers_vq.config import Config, Rate
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.terms import Term
from tokenizers_vq.tokenizer import Tokenizer


def logit_laplace_nll(output: Tensor, pixels: Tensor) -> Tensor:
    """`-ln f(x)` of each value, float32 `(B, C, H, W)`; a density, so values may be negative.

    f(x) = exp(-|logit x - mu| / b) / (2 b x (1 - x)). `output`: `(B, 2C, H, W)`, mu in the first C channels, ln b in
    the others, neither clamped. `pixels`: `(B, C, H, W)` inside (0, 1), as the epsilon map leaves them.
    """
    mu, log_b = output.float().chunk(2, dim=1)
    x = pixels.float()
    return (torch.logit(x) - mu).abs() * torch.exp(-log_b) + log_b + torch.log(2 * x * (1 - x))


class LogitLaplaceConfig(Config):
    """Negative log likelihood under logit-Laplace densities; needs `decoder.output: logit_laplace`."""

    kind: Literal["logit_laplace"] = "logit_laplace"
    weight: Rate = 1.0
    """weight, or a schedule of it"""

    def build(self, tokenizer: Tokenizer | None = None) -> LogitLaplace:
        return LogitLaplace(**self.arguments())


class LogitLaplace(Term):
    """`mean -ln f(x)` over values, x in the range of the config's `pixels` (the epsilon map)."""

    name = "logit_laplace"

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.weight = LogitLaplaceConfig(**fields).weight

    def forward(self, record: Record) -> Tensor:
        return logit_laplace_nll(record.output, record.pixels).mean()
