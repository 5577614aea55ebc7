"""Gumbel-softmax quantization (arXiv 1611.01144; for images 2102.12092 and taming's Gumbel VQGAN)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from tokenizers_vq.codes import CodeLayout, Quantized
from tokenizers_vq.config import MOST_CODES, ConfigError, Size
from tokenizers_vq.quantizers.base import (
    Quantizer,
    QuantizerFields,
    Remedy,
    check_codes,
    check_in_all_processes,
    fewer_codes,
    straight_through,
)
from tokenizers_vq.quantizers.search import check_finite, nearest_codes
from tokenizers_vq.quantizers.statistics import code_stats, count


class GumbelQuantizerConfig(QuantizerFields):
    """A categorical distribution over the codes at every position; training draws relaxed samples of it."""

    kind: Literal["gumbel"] = "gumbel"
    num_codes: int = Field(default=8192, ge=2, le=MOST_CODES)
    """codes in the codebook"""
    dim: Size = 256
    """width of a code's vector"""
    in_dim: int | None = Field(default=None, ge=1, le=MOST_CODES)
    """width of the features; null = `dim`, and without projection the number of codes"""
    project: bool = True
    """features become logits by a linear layer; without it they are the logits (DALL-E's encoder)"""
    straight_through: bool = False
    """training looks up the sample's hardest code, with the relaxed sample's gradient"""
    temperature: float = Field(default=1.0, gt=0)
    """of the relaxed samples, at the start; a recipe's `anneal` moves it"""
    kl_weight: float = Field(default=5e-4, ge=0)
    """weight of the KL term; a recipe's `quantizer_losses` multiplies it"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.project and self.in_dim not in (None, self.num_codes):
            raise ConfigError(("in_dim",), f"without projection it is num_codes, {self.num_codes}: leave it out")
        return self

    def frozen(self) -> str:
        """It would draw no samples."""
        return "a frozen gumbel quantizer draws no samples and gives the encoder no gradient: give train=decoder"

    def remedies(self) -> list[Remedy]:
        """A larger KL term: codes are told by logits, not by where they lie; fewer codes."""
        weight = f"kl_weight={3 * self.kl_weight or 0.01:g}"
        return [Remedy((weight,), "pulls the choice of codes towards an even one"), *fewer_codes(self)]

    def build(self) -> GumbelQuantizer:
        """The quantizer."""
        return GumbelQuantizer(**self.arguments())


class GumbelQuantizer(Quantizer):
    """Features `(B, in_dim, *grid)` to one of K codes, the one of the largest logit. Fields: `GumbelQuantizerConfig`.

    Training gives sum_k y_k e_k with y = softmax((logits + g) / temperature), g standard Gumbel noise (arXiv
    1611.01144, eq. 2); in eval, and in `encode`, there is no noise and y is one-hot. `temperature` is a buffer.
    Loss `kl` = weight x KL(softmax(logits) || uniform), in nats, mean over positions. Stats: `statistics.code_stats` of
    the codes without noise.
    """

    training_state: ClassVar[tuple[str, ...]] = ("temperature", "age")
    temperature: Tensor
    age: Tensor

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.config = config = GumbelQuantizerConfig(**fields)
        self.num_codes, self.dim = config.num_codes, config.dim
        self.in_dim = config.in_dim or (config.dim if config.project else config.num_codes)
        self.projection = nn.Linear(self.in_dim, config.num_codes) if config.project else None
        self.weight = nn.Parameter(torch.randn(config.num_codes, config.dim))
        self.register_buffer("temperature", torch.tensor(config.temperature))
        self.register_buffer("age", torch.zeros(config.num_codes, dtype=torch.long))

    def layout(self, grid: tuple[int, ...]) -> CodeLayout:
        """One code of K at every position of `grid`."""
        return CodeLayout((grid,), 1, (self.num_codes,))

    def encode(self, features: Tensor) -> Tensor:
        """`(B, in_dim, *grid)` -> int64 `(B, *grid)`. Raises `ValueError` for non-finite features."""
        rows = features.detach().float().movedim(1, -1)
        if self.projection is None:
            if rows.numel() and not torch.compiler.is_compiling():
                check_finite(rows, "features to quantize hold")
            return rows.argmax(-1)
        # The largest of w x + b is that of a dot product: exact, and without a tensor of all logits.
        weight, bias = self.projection.weight.detach(), self.projection.bias.detach()
        flat = F.pad(rows.reshape(-1, self.in_dim), (0, 1), value=1.0)
        table = torch.cat([weight, bias[:, None]], dim=1).float()
        return nearest_codes(flat, table, score="dot").reshape(rows.shape[:-1])

    def lookup(self, codes: Tensor) -> Tensor:
        """int64 `(B, *grid)` -> `(B, D, *grid)` in the codebook's dtype. Raises `ValueError` for codes out of range."""
        check_codes(codes, self.num_codes)
        return F.embedding(codes, self.weight).movedim(-1, 1)

    def forward(self, features: Tensor) -> Quantized:
        """`(B, in_dim, *grid)` -> `Quantized`. Raises `ValueError` for non-finite features, in training in all
        processes."""
        with torch.autocast(features.device.type, enabled=False):
            rows = features.float().movedim(1, -1)
            if self.training:
                check_in_all_processes(rows)
            codes = self.encode(features)
            logits = rows
            if self.projection is not None:
                logits = F.linear(rows, self.projection.weight.float(), self.projection.bias.float())
            log = F.log_softmax(logits, dim=-1)
            kl = (log.exp() * log).sum(-1).mean() + math.log(self.num_codes)
            losses = {"kl": self.config.kl_weight * kl}
            if not self.training:
                return Quantized(self.lookup(codes), codes, losses, {})
            sample = self._sample(logits)
            vectors = (sample @ self.weight.float()).movedim(-1, 1).to(self.weight.dtype)
            return Quantized(vectors, codes, losses, code_stats(count(codes, self.num_codes), self.age))

    def _sample(self, logits: Tensor) -> Tensor:
        noise = -torch.empty_like(logits).exponential_().log()
        soft = torch.softmax((logits + noise) / self.temperature.float(), dim=-1)
        if not self.config.straight_through:
            return soft
        return straight_through(torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0), soft)
