"""Finite scalar quantization: every channel bounded and rounded to a few levels (Mentzer et al., arXiv 2309.15505).

iFSQ (arXiv 2601.17124) bounds by 2 sigmoid(1.6 z) - 1, under which normally distributed features fill levels evenly.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from tokenizers_vq.codes import Quantized
from tokenizers_vq.config import ConfigError
from tokenizers_vq.devices import constant
from tokenizers_vq.quantizers.base import QuantizerFields, Remedy, as_given, check_codes, straight_through
from tokenizers_vq.quantizers.implicit import ImplicitQuantizer


class FsqQuantizerConfig(QuantizerFields):
    """One channel a dimension, each with its own number of levels; no codebook and no loss."""

    kind: Literal["fsq"] = "fsq"
    levels: tuple[Annotated[int, Field(ge=2, le=65_536)], ...] = Field(
        default=(8, 5, 5, 5), min_length=1, max_length=62
    )
    """levels of each channel; their product is the number of codes"""
    bound: Literal["paper", "atanh"] = "paper"
    """the paper's listing (narrowed by epsilon, tan), or that of vector-quantize-pytorch and Cosmos (widened, atanh)"""
    epsilon: float = Field(default=1e-3, gt=0, lt=1)
    """tanh: how much the bounded range is narrower or wider than the levels"""
    activation: Literal["tanh", "sigmoid"] = "tanh"
    """what bounds a channel: tanh z, or 2 sigmoid(1.6 z) - 1 to exactly the levels' range (iFSQ)"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.activation == "sigmoid" and self.bound != "paper":
            raise ConfigError(("bound",), "is one of tanh: leave it out with activation: sigmoid")
        return self

    def remedies(self) -> list[Remedy]:
        """Fewer codes: one channel less."""
        return [Remedy((f"levels={list(self.levels[:-1])}",), "fewer codes")] if len(self.levels) > 2 else []

    def build(self) -> FsqQuantizer:
        """The quantizer."""
        return FsqQuantizer(**self.arguments())


class FsqQuantizer(ImplicitQuantizer):
    """Features `(B, D, *grid)`, one channel per entry of `levels`, to one of prod(levels) codes.

    Channel i becomes q = round(bound(z)) / (L // 2), so values lie in [-1, 1] (appendix A.1); the estimator is
    straight-through the rounding, so its gradient is the bound's. A code is the mixed-radix number of the digits
    round(bound(z)) + L // 2, first channel fastest. Fields: `FsqQuantizerConfig`.

    As a book of several levels: features are bounded once; what rounding leaves of a channel is 1 / (L - 1) of its
    range, by which the next level is smaller (ResidualFSQ of vector-quantize-pytorch; a half for L = 2, which this
    would not shrink), about the middle of the range.
    """

    def __init__(self, **fields: Any) -> None:
        config = FsqQuantizerConfig(**fields)
        super().__init__(math.prod(config.levels))
        self.config = config
        self.in_dim = self.dim = len(config.levels)
        self.finer = tuple(1 / max(levels - 1, 2) for levels in config.levels)
        self.centre = tuple(0.0 if levels % 2 else -1 / levels for levels in config.levels)

    def _levels(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        return constant(self.config.levels, like.device, dtype)

    def _radix(self, like: Tensor) -> Tensor:
        places = [math.prod(self.config.levels[:i]) for i in range(self.dim)]
        return constant(places, like.device, torch.long)

    def bounded(self, rows: Tensor) -> Tensor:
        """`(..., D)` -> `(..., D)` in about [-(L // 2), (L - 1) // 2], where rounding gives the levels."""
        levels = self._levels(rows, rows.dtype)
        sigmoid = self.config.activation == "sigmoid"
        epsilon = 0.0 if sigmoid else self.config.epsilon
        offset = torch.where(levels % 2 == 0, 0.5, 0.0).to(rows.dtype)
        if self.config.bound == "paper":
            half = (levels - 1) * (1 - epsilon) / 2
            shift = torch.tan(offset / half)
        else:
            half = (levels - 1) * (1 + epsilon) / 2
            shift = torch.atanh(offset / half)
        # 2 sigmoid(1.6 z) - 1 = tanh(0.8 z).
        return torch.tanh((rows * 0.8 if sigmoid else rows) + shift) * half - offset

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
            return self._code(self._digits(self.bounded(features.detach().float().movedim(1, -1))))

    def _code(self, digits: Tensor) -> Tensor:
        return (digits * self._radix(digits)).sum(-1)

    def lookup(self, codes: Tensor) -> Tensor:
        """int64 `(B, *grid)` -> float32 `(B, D, *grid)`. Raises `ValueError` for codes out of range."""
        check_codes(codes, self.num_codes)
        places = codes[..., None] // self._radix(codes)  # not torch.div, which ONNX computes in float32
        return self._values(places % self._levels(codes, torch.long)).movedim(-1, 1)

    def forward(self, features: Tensor) -> Quantized:
        """`(B, D, *grid)` -> `Quantized`. Raises `ValueError` for non-finite features, in training in all processes."""
        self._check(features)
        with torch.autocast(features.device.type, enabled=False):
            found = self._forward(self.bounded(features.float().movedim(1, -1)))
        return found._replace(features=as_given(found.features, features))

    def _forward(self, bounded: Tensor) -> Quantized:
        digits = self._digits(bounded)
        codes = self._code(digits)
        quantized = straight_through(self._values(digits), bounded / self._half(bounded)).movedim(-1, 1)
        return Quantized(quantized, codes, {}, self._stats(codes) if self.training else {})

    def _half(self, like: Tensor) -> Tensor:
        return self._levels(like, torch.float32).div(2, rounding_mode="floor")

    def confine(self, features: Tensor) -> Tensor:
        """bound(z) / (L // 2), within [-1, 1]."""
        bounded = self.bounded(features.movedim(1, -1))
        return (bounded / self._half(bounded)).movedim(-1, 1)

    def encode_confined(self, vectors: Tensor) -> Tensor:
        """The level nearest to each value."""
        rows = vectors.detach().movedim(1, -1)
        return self._code(self._digits(rows * self._half(rows)))

    def forward_confined(self, vectors: Tensor) -> Quantized:
        """Straight through the rounding of each value."""
        rows = vectors.movedim(1, -1)
        return self._forward(rows * self._half(rows))
