"""SimVQ: the codebook is a frozen basis times one learned linear map (Zhu et al., arXiv 2411.02038)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tokenizers_vq.codes import CodeLayout, Quantized
from tokenizers_vq.config import MOST_CODES, Size
from tokenizers_vq.quantizers.base import (
    Quantizer,
    QuantizerFields,
    Remedy,
    check_codes,
    check_in_all_processes,
    fewer_codes,
    narrower,
    straight_through,
)
from tokenizers_vq.quantizers.search import nearest_codes
from tokenizers_vq.quantizers.statistics import code_stats, count


class SimVqQuantizerConfig(QuantizerFields):
    """A random codebook that stays, moved as a whole by a linear layer."""

    kind: Literal["simvq"] = "simvq"
    num_codes: int = Field(default=65536, ge=1, le=MOST_CODES)
    """codes in the codebook"""
    dim: Size = 128
    """width of a code"""
    beta: float = 0.25
    """weight of the commitment term"""
    bias: bool = True
    """the linear layer has a bias"""

    def remedies(self) -> list[Remedy]:
        """Fewer dimensions, fewer codes."""
        return narrower(self) + fewer_codes(self)

    def build(self) -> SimVqQuantizer:
        """The quantizer."""
        return SimVqQuantizer(**self.arguments())


class SimVqQuantizer(Quantizer):
    """Features `(B, D, *grid)` to the nearest row of W basis + b. Fields: `SimVqQuantizerConfig`.

    All codes share the map, so each update moves them all and none dies. Losses as `VectorQuantizer`'s: `codebook` =
    |sg[z] - q|^2, which trains the map alone, and `commitment` = beta |z - sg[q]|^2. The estimator is straight-through.
    Stats in training: `statistics.code_stats`.
    """

    training_state: ClassVar[tuple[str, ...]] = ("age",)
    straight = True
    basis: Tensor
    age: Tensor

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.config = config = SimVqQuantizerConfig(**fields)
        self.in_dim = self.dim = config.dim
        self.num_codes = config.num_codes
        self.register_buffer("basis", torch.randn(config.num_codes, config.dim) * config.dim**-0.5)
        self.map = nn.Linear(config.dim, config.dim, bias=config.bias)
        self.register_buffer("age", torch.zeros(config.num_codes, dtype=torch.long))

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """Of the commitment."""
        return {"commitment": self.config.beta}

    @property
    def codebook(self) -> Tensor:
        """float32 `(K, D)`, the vectors that `lookup` gives."""
        # Whole, not by the rows in use: a product's rounding depends on its shape, and a code's vector must not.
        bias = None if self.map.bias is None else self.map.bias.float()
        return F.linear(self.basis.float(), self.map.weight.float(), bias)

    def layout(self, grid: tuple[int, ...]) -> CodeLayout:
        """One code of K at every position of `grid`."""
        return CodeLayout((grid,), 1, (self.num_codes,))

    def encode(self, features: Tensor) -> Tensor:
        """`(B, D, *grid)` -> int64 `(B, *grid)`. Raises `ValueError` for non-finite features."""
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            return self._search(features, self.codebook)

    def _search(self, features: Tensor, codebook: Tensor) -> Tensor:
        rows = features.detach().float().movedim(1, -1)
        return nearest_codes(rows.reshape(-1, self.dim), codebook.detach()).reshape(rows.shape[:-1])

    def lookup(self, codes: Tensor) -> Tensor:
        """int64 `(B, *grid)` -> `(B, D, *grid)` in the map's dtype. Raises `ValueError` for codes out of range."""
        check_codes(codes, self.num_codes)
        with torch.autocast(codes.device.type, enabled=False):
            return F.embedding(codes, self.codebook).movedim(-1, 1).to(self.map.weight.dtype)

    def forward(self, features: Tensor) -> Quantized:
        """`(B, D, *grid)` -> `Quantized`. Raises `ValueError` for non-finite features, in training in all processes."""
        with torch.autocast(features.device.type, enabled=False):
            z, codebook = features.float(), self.codebook
            if self.training:
                check_in_all_processes(z)
            codes = self._search(z, codebook)
            target = F.embedding(codes, codebook).movedim(-1, 1)
            losses = {
                "commitment": self.config.beta * F.mse_loss(z, target.detach()),
                "codebook": F.mse_loss(target, z.detach()),
            }
            quantized = straight_through(target, z).to(self.map.weight.dtype)
            stats = code_stats(count(codes, self.num_codes), self.age) if self.training else {}
        return Quantized(quantized, codes, losses, stats)
