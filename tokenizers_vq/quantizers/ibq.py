"""Index backpropagation quantization: straight-through over the one-hot of all codes (Shi et al., arXiv 2412.02692)."""

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
)
from tokenizers_vq.quantizers.entropy import entropy_loss
from tokenizers_vq.quantizers.search import nearest_codes
from tokenizers_vq.quantizers.statistics import code_stats, count


class IbqQuantizerConfig(QuantizerFields):
    """One codebook, all of which is trained by every vector."""

    kind: Literal["ibq"] = "ibq"
    num_codes: int = Field(default=16384, ge=1, le=MOST_CODES)
    """codes in the codebook"""
    dim: Size = 256
    """width of a code"""
    beta: float = 0.25
    """weight of the codebook term, as the published code has it (commitment has 1)"""
    entropy_weight: float = Field(default=0.05, ge=0)
    """weight of the entropy term, which makes each choice of a code sure and the use of all codes even; 0 = none"""
    entropy_temperature: float = Field(default=0.01, gt=0)
    """dot product that multiplies the probability of a code by e (entropy term); lower = harder choices"""

    def remedies(self) -> list[Remedy]:
        """Fewer dimensions, the entropy term, fewer codes."""
        entropy = [] if self.entropy_weight else [Remedy(("entropy_weight=0.1",), "rewards even use")]
        return narrower(self) + entropy + fewer_codes(self)

    def build(self) -> IbqQuantizer:
        """The quantizer."""
        return IbqQuantizer(**self.arguments())


class IbqQuantizer(Quantizer):
    """Features `(B, D, *grid)` to the code of the largest dot product. Fields: `IbqQuantizerConfig`.

    With p = softmax(z . e_k) the estimator is e^T (onehot + p - sg[p]) (eq. 5): its value is the code's vector, its
    gradient reaches z and every code through p, and the chosen code directly. Losses, means over every element, with q
    that estimate and e the chosen vector: `double` = |q - z|^2, `commitment` = |z - sg[e]|^2, `codebook` =
    beta |e - sg[z]|^2; `entropy` = weight (mean entropy - entropy of the mean) of softmax(z . e_k / temperature).
    Stats in training: `statistics.code_stats`.
    """

    training_state: ClassVar[tuple[str, ...]] = ("age",)
    age: Tensor

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.config = config = IbqQuantizerConfig(**fields)
        self.in_dim = self.dim = config.dim
        self.num_codes = config.num_codes
        self.weight = nn.Parameter(torch.randn(config.num_codes, config.dim))
        self.register_buffer("age", torch.zeros(config.num_codes, dtype=torch.long))

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """Of the codebook term."""
        return {"codebook": self.config.beta}

    def layout(self, grid: tuple[int, ...]) -> CodeLayout:
        """One code of K at every position of `grid`."""
        return CodeLayout((grid,), 1, (self.num_codes,))

    def encode(self, features: Tensor) -> Tensor:
        """`(B, D, *grid)` -> int64 `(B, *grid)`. Raises `ValueError` for non-finite features."""
        rows = features.detach().movedim(1, -1)
        flat = rows.reshape(-1, self.dim).float()
        return nearest_codes(flat, self.weight.detach().float(), score="dot").reshape(rows.shape[:-1])

    def lookup(self, codes: Tensor) -> Tensor:
        """int64 `(B, *grid)` -> `(B, D, *grid)` in the codebook's dtype. Raises `ValueError` for codes out of range."""
        check_codes(codes, self.num_codes)
        return F.embedding(codes, self.weight).movedim(-1, 1)

    def forward(self, features: Tensor) -> Quantized:
        """`(B, D, *grid)` -> `Quantized`. Raises `ValueError` for non-finite features, in training in all processes."""
        with torch.autocast(features.device.type, enabled=False):
            z = features.float().movedim(1, -1)
            if self.training:
                check_in_all_processes(z)
            codes = self.encode(features)
            flat, weight = z.reshape(-1, self.dim), self.weight.float()
            chosen = F.embedding(codes, weight)
            # Attention of the vectors to the codebook is the same sum, and fused kernels keep no N x K table.
            query, key, value = (x[None, None] for x in (flat, weight, weight.detach()))
            soft = F.scaled_dot_product_attention(query, key, value, scale=1.0).view_as(z)
            quantized = chosen + (soft - soft.detach())
            losses = {
                "double": F.mse_loss(quantized, z),
                "commitment": F.mse_loss(z, chosen.detach()),
                "codebook": self.config.beta * F.mse_loss(chosen, z.detach()),
            }
            if self.config.entropy_weight:
                entropy = entropy_loss(flat, weight, self.config.entropy_temperature, score="dot")
                losses["entropy"] = self.config.entropy_weight * entropy
            stats = code_stats(count(codes, self.num_codes), self.age) if self.training else {}
        return Quantized(quantized.movedim(-1, 1).to(self.weight.dtype), codes, losses, stats)
