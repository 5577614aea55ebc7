"""Finite scalar quantization: every channel bounded and rounded to a few levels (Mentzer et al., arXiv 2309.15505)."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokenizers_vq.codes import Quantized
from tokenizers_vq.config import Config
from tokenizers_vq.quantizers.base import check_codes, straight_through
from tokenizers_vq.quantizers.implicit import ImplicitQuantizer, as_given


class FsqQuantizerConfig(Config):
    """One channel a dimension, each with its own number of levels; no codebook and no loss."""

    kind: Literal["fsq"] = "fsq"
    levels: tuple[Annotated[int, Field(ge=2)], ...] = Field(default=(8, 5, 5, 5), min_length=1)
    """levels of each channel; their product is the number of codes"""
    bound: Literal["paper", "atanh"] = "paper"
    """the paper's listing (narrowed by epsilon, tan), or that of vector-quantize-pytorch and Cosmos (widened, atanh)"""
    epsilon: float = Field(default=1e-3, gt=0, lt=1)
    """how much the bounded range is narrower or wider than the levels"""

    def build(self) -> FsqQuantizer:
        """The quantizer."""
        return FsqQuantizer(**self.arguments())


class FsqQuantizer(ImplicitQuantizer):
    """Features `(B, D, *grid)`, one channel per entry of `levels`, to one of prod(levels) codes.

    Channel i becomes q = round(bound(z)) / (L // 2), so values lie in [-1, 1] (appendix A.1); the estimator is
    straight-through the rounding, so its gradient is the bound's. A code is the mixed-radix number of the digits
    round(bound(z)) + L // 2, first channel fastest. Fields: `FsqQuantizerConfig`.
    """

    def __init__(self, **fields: Any) -> None:
        config = FsqQuantizerConfig(**fields)
        super().__init__(math.prod(config.levels))
        self.config = config
        self.in_dim = self.dim = len(config.levels)

    def _levels(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.tensor(self.config.levels, device=like.device, dtype=dtype)

    def _radix(self, like: Tensor) -> Tensor:
        places = [math.prod(self.config.levels[:i]) for i in range(self.dim)]
        return torch.tensor(places, device=like.device, dtype=torch.long)

    def bounded(self, rows: Tensor) -> Tensor:
        """`(..., D)` -> `(..., D)` in about [-(L // 2), (L - 1) // 2], where rounding gives the levels."""
        levels, epsilon = self._levels(rows, rows.dtype), self.config.epsilon
        offset = torch.where(levels % 2 == 0, 0.5, 0.0).to(rows.dtype)
        if self.config.bound == "paper":
            half = (levels - 1) * (1 - epsilon) / 2
            shift = torch.tan(offset / half)
        else:
            half = (levels - 1) * (1 + epsilon) / 2
            shift = torch.atanh(offset / half)
        return torch.tanh(rows + shift) * half - offset

    def _digits(self, bounded: Tensor) -> Tensor:
        levels = self._levels(bounded, bounded.dtype)
        low = torch.div(levels, 2, rounding_mode="floor")
        return (bounded.detach().round() + low).clamp(min=0).minimum(levels - 1).long()

    def _values(self, digits: Tensor) -> Tensor:
        half = self._levels(digits, torch.long) // 2
        return (digits - half).float() / half

    def encode(self, features: Tensor) -> Tensor:
        """`(B, D, *grid)` -> int64 `(B, *grid)`. Raises `ValueError` for non-finite features."""
        self._check(features)
        with torch.autocast(features.device.type, enabled=False):
            rows = features.detach().float().movedim(1, -1)
            return (self._digits(self.bounded(rows)) * self._radix(rows)).sum(-1)

    def lookup(self, codes: Tensor) -> Tensor:
        """int64 `(B, *grid)` -> float32 `(B, D, *grid)`. Raises `ValueError` for codes out of range."""
        check_codes(codes, self.num_codes)
        places = codes[..., None] // self._radix(codes)  # not torch.div, which ONNX computes in float32
        return self._values(places % self._levels(codes, torch.long)).movedim(-1, 1)

    def forward(self, features: Tensor) -> Quantized:
        """`(B, D, *grid)` -> `Quantized`. Raises `ValueError` for non-finite features, in training in all processes."""
        self._check(features)
        with torch.autocast(features.device.type, enabled=False):
            bounded = self.bounded(features.float().movedim(1, -1))
            digits = self._digits(bounded)
            codes = (digits * self._radix(digits)).sum(-1)
            half = self._levels(bounded, torch.float32).div(2, rounding_mode="floor")
            quantized = straight_through(self._values(digits), bounded / half).movedim(-1, 1)
        stats = self._stats(codes) if self.training else {}
        return Quantized(as_given(quantized, features), codes, {}, stats)
