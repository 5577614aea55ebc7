"""DiVeQ: a code's vector as the feature plus a step of the right length (Vali et al., arXiv 2509.26469, ICLR 2026)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from tokenizers_vq.codes import CodeLayout, Quantized
from tokenizers_vq.config import MOST_CODES, ConfigError, Size
from tokenizers_vq.quantizers import kmeans
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


class DiveqQuantizerConfig(QuantizerFields):
    """One codebook that learns from the image's losses alone, without a loss of its own."""

    kind: Literal["diveq"] = "diveq"
    num_codes: int = Field(default=1024, ge=1, le=MOST_CODES)
    """codes in the codebook"""
    dim: Size = 32
    """width of a code"""
    noise: float = Field(default=0.03, ge=0)
    """standard deviation of what is added to the step's direction in training (the paper: variance 0.001); 0 = none"""
    space_filling: bool = False
    """in training features go to the curve through all codes in their order, which draws every code along (SF-DiVeQ)"""
    warmup: int = Field(default=0, ge=0)
    """first updates that pass features on as they are; the codebook then starts at features; 0 = none"""
    revive_after: int | None = Field(default=None, ge=1)
    """a code unused for so many updates is moved to a random feature, and again after as many; null = never"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.space_filling and self.num_codes < 2:
            raise ConfigError(("num_codes",), "a space-filling curve needs at least 2 codes")
        return self

    def remedies(self) -> list[Remedy]:
        """What of its fields keeps codes in use."""
        found = narrower(self)
        if not self.space_filling:
            found.append(Remedy(("space_filling=true",), "draws every code along the curve"))
        if self.revive_after is None:
            found.append(Remedy(("revive_after=100",), "moves dead codes to features"))
        if not self.warmup:
            found.append(Remedy(("warmup=1000",), "begins with codes where the features are"))
        return found + fewer_codes(self)

    def build(self) -> DiveqQuantizer:
        """The quantizer."""
        return DiveqQuantizer(**self.arguments())


class DiveqQuantizer(Quantizer):
    """Features `(B, D, *grid)` to the nearest of K codes. Fields: `DiveqQuantizerConfig`.

    In training features become z + |c - z| sg[u], u the unit vector along c - z + noise (eq. 5 and 6 of the paper; see
    `moved`): the gradient of the image's losses reaches z, and the code c through the length of the step. There is no
    codebook loss and no commitment. Space-filling: one point is drawn on each stretch between successive codes c_k and
    c_(k+1), and features go to the nearest of these points, by a step to either end in the shares in which the point
    lies between them; the code is that of the nearer end.

    `encode`, `lookup` and eval give the nearest code and its vector in both forms (what the paper calls quantizing to
    the curve at inference gives no codes). Without noise the value in training is the code's vector too. Stats in
    training: `statistics.code_stats`.
    """

    training_state: ClassVar[tuple[str, ...]] = ("age", "step")
    age: Tensor
    step: Tensor

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.config = config = DiveqQuantizerConfig(**fields)
        self.in_dim = self.dim = config.dim
        self.num_codes = config.num_codes
        self.weight = nn.Parameter(torch.empty(config.num_codes, config.dim))
        nn.init.uniform_(self.weight, -1 / config.num_codes, 1 / config.num_codes)
        self.register_buffer("age", torch.zeros(config.num_codes, dtype=torch.long))
        if config.warmup:
            self.register_buffer("step", torch.zeros((), dtype=torch.long))

    @property
    def codebook(self) -> Tensor:
        """float32 `(K, D)`, the vectors that `lookup` gives."""
        return self.weight.float()

    def layout(self, grid: tuple[int, ...]) -> CodeLayout:
        """One code of K at every position of `grid`."""
        return CodeLayout((grid,), 1, (self.num_codes,))

    def encode(self, features: Tensor) -> Tensor:
        """`(B, D, *grid)` -> int64 `(B, *grid)`. Raises `ValueError` for non-finite features."""
        rows = features.detach().movedim(1, -1)
        flat = rows.reshape(-1, self.dim).float()
        return nearest_codes(flat, self.weight.detach().float()).reshape(rows.shape[:-1])

    def lookup(self, codes: Tensor) -> Tensor:
        """int64 `(B, *grid)` -> `(B, D, *grid)` in the codebook's dtype. Raises `ValueError` for codes out of range."""
        check_codes(codes, self.num_codes)
        return F.embedding(codes, self.weight).movedim(-1, 1)

    def forward(self, features: Tensor) -> Quantized:
        """`(B, D, *grid)` -> `Quantized`. Raises `ValueError` for non-finite features, in training in all processes."""
        with torch.autocast(features.device.type, enabled=False):
            z = features.float().movedim(1, -1)
            rows = z.reshape(-1, self.dim)
            if self.training:
                check_in_all_processes(rows)
                self._prepare(rows.detach())
            if self.training and self._warming():
                codes = self.encode(features).flatten()
                quantized = rows + 0 * self.weight.sum()  # a gradient of zero, not none, which DDP refuses
                self.step += 1
            elif self.training and self.config.space_filling:
                quantized, codes = self._on_curve(rows)
            else:
                codes = self.encode(features).flatten()
                quantized = self._to_code(rows, codes)
            stats = code_stats(count(codes, self.num_codes), self.age) if self.training else {}
        shaped = quantized.reshape(z.shape).movedim(-1, 1).to(self.weight.dtype)
        return Quantized(shaped, codes.reshape(z.shape[:-1]), {}, stats)

    def _to_code(self, rows: Tensor, codes: Tensor) -> Tensor:
        target = F.embedding(codes, self.weight.float())
        if self.training and self.config.noise:
            return moved(rows, target, self._noise(rows))
        return straight_through(target, moved(rows, target))

    def _on_curve(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.weight.float()
        shares = torch.rand(self.num_codes - 1, 1, device=rows.device)
        segments = nearest_codes(rows.detach(), on_curve(weight.detach(), shares))
        noises = [self._noise(rows) for _ in range(2)]
        quantized = moved_between(rows, weight, segments, shares, noises[0], noises[1])
        return quantized, segments + (shares[segments, 0] > 0.5).long()

    def _noise(self, rows: Tensor) -> Tensor:
        return self.config.noise * torch.randn_like(rows)

    def _warming(self) -> bool:
        return bool(self.config.warmup) and int(self.step) < self.config.warmup

    @torch.no_grad()
    def _prepare(self, rows: Tensor) -> None:
        """Start the codebook after the warm-up; revive codes that have fallen out of use."""
        if self.config.warmup and int(self.step) == self.config.warmup:
            self.step += 1
            found = kmeans.draw(rows, self.num_codes)
            self.weight.data[: len(found)] = found.to(self.weight.dtype)
        elif self.config.revive_after is not None and not self._warming():
            places, vectors = kmeans.replacements(rows, self.age, self.config.revive_after)
            self.weight.data.copy_(torch.where(places, vectors.to(self.weight.dtype), self.weight))


def moved(rows: Tensor, target: Tensor, noise: Tensor | float = 0.0) -> Tensor:
    """z + |c - z| sg[u], u along c - z + noise: `(N, D)` each; without noise its value is c up to rounding."""
    step = target - rows
    return rows + torch.linalg.vector_norm(step, dim=1, keepdim=True) * F.normalize((step + noise).detach(), dim=1)


def on_curve(codebook: Tensor, shares: Tensor) -> Tensor:
    """`(K, D)`, `(K - 1, 1)` in [0, 1] -> `(K - 1, D)`: a point between each two successive codes."""
    return torch.lerp(codebook[:-1], codebook[1:], shares)


def moved_between(
    rows: Tensor, codebook: Tensor, segments: Tensor, shares: Tensor, first: Tensor, second: Tensor
) -> Tensor:
    """z + (1 - s) |c_k - z| sg[u_k] + s |c_(k+1) - z| sg[u_(k+1)] of rows `(N, D)` on their segments `(N,)`.

    `shares` `(K - 1, 1)` s of every segment; `first` and `second`: noise `(N, D)` of either direction.
    """
    share, ends = shares[segments], (F.embedding(segments, codebook), F.embedding(segments + 1, codebook))
    steps = [moved(rows, end, noise) - rows for end, noise in zip(ends, (first, second), strict=True)]
    return rows + (1 - share) * steps[0] + share * steps[1]
