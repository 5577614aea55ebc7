"""From logits to codes: temperature, top-k, top-p, min-p, guidance and its schedules, seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from tokenizers_vq.config import Config, ConfigError

Share = Annotated[float, Field(ge=0, le=1)]


class Sampler(Config):
    """How codes are drawn. Temperature first, then top-k, top-p and min-p, on the guided logits."""

    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """divides the logits; 0 takes the likeliest code"""
    top_k: Annotated[int, Field(ge=1)] | None = None
    """keep the k likeliest codes"""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """keep the fewest likeliest codes whose probabilities reach p"""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """keep the codes that are at least this many times as probable as the likeliest"""
    guidance: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """classifier-free guidance: uncond + guidance (cond - uncond); 1 = off"""
    guidance_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """guidance over the way: the same, or rising from 1 at its beginning to `guidance` at its end"""
    guidance_power: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """of the cosine: larger ones rise later; 0 is constant"""
    guidance_interval: tuple[Share, Share] = (0.0, 1.0)
    """shares of the way between which there is guidance, ends included"""
    seed: int = 0
    """sample i of a seed is drawn alike, however many are drawn with it"""

    @model_validator(mode="before")
    @classmethod
    def _plain_numbers(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        # Numbers of NumPy and torch come out of sweeps.
        return {name: one.item() if getattr(one, "ndim", None) == 0 else one for name, one in data.items()}

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.guidance_interval
        if low > high:
            raise ConfigError(("guidance_interval",), f"ends before it begins: [{low:g}, {high:g}]")
        return self


def filter_logits(
    logits: Tensor, top_k: int | None = None, top_p: float | None = None, min_p: float | None = None
) -> Tensor:
    """Logits `(..., K)` with -inf outside the top-k, then outside the nucleus (top-p, arXiv 1904.09751) of the rest.

    Last go codes less than `min_p` times as probable as the likeliest (arXiv 2407.01082). Codes tied with the k-th all
    stay; the likeliest code always stays.
    """
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if top_p is not None and top_p < 1:
        values, order = logits.sort(dim=-1, descending=True, stable=True)
        probabilities = values.float().softmax(dim=-1)
        # A code goes where the codes before it already reach p.
        out = probabilities.cumsum(dim=-1) - probabilities >= top_p
        logits = logits.masked_fill(out.scatter(-1, order, out), float("-inf"))
    if min_p is not None and min_p > 0:
        logits = logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(min_p), float("-inf"))
    return logits


def guidance_at(sampler: Sampler, share: float) -> float:
    """The factor f of `uncond + f (cond - uncond)` when this share of the way is done, 0 <= share <= 1.

    With s = `guidance`: constant s; linear `1 + (s - 1) share` (Muse, arXiv 2301.00704); cosine
    `1 + (s - 1) (1 - cos(pi share^power)) / 2` (power-cosine of MDT, arXiv 2303.14389, as TiTok and RAR draw). Outside
    `guidance_interval` it is 1, no guidance (arXiv 2404.07724). Drawing step i of S is i / S of the way.
    """
    low, high = sampler.guidance_interval
    if not low <= share <= high:
        return 1.0
    rise = 1.0
    if sampler.guidance_schedule == "linear":
        rise = share
    elif sampler.guidance_schedule == "cosine":
        rise = (1 - math.cos(math.pi * share**sampler.guidance_power)) / 2  # 0 ** 0 is 1 here, as in the references
    return 1 + (sampler.guidance - 1) * rise


def guide(logits: Tensor, guidance: float | Tensor) -> Tensor:
    """`(2B, ..., K)`, the conditional half first -> `uncond + guidance (cond - uncond)`, `(B, ..., K)`.

    `guidance`: a number, or a tensor that is broadcast. -inf stays -inf.
    """
    conditional, unconditional = logits.float().chunk(2)
    guided = torch.lerp(unconditional, conditional, guidance)
    return guided.masked_fill(conditional.isinf(), float("-inf"))


def uniforms(count: int, length: int, seed: int, first: int = 0, draw: int = 0) -> Tensor:
    """float32 `(count, length)` in [0, 1): row i depends on (seed, first + i) and on the number of the draw alone."""
    rows = []
    for index in range(first, first + count):
        # Odd multipliers (splitmix64's), so that sample i + 1 of a seed is not sample i of the next.
        mixed = seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + draw * 0x94D049BB133111EB + 1
        rows.append(torch.rand(length, generator=torch.Generator().manual_seed(mixed % 2**63)))
    return torch.stack(rows) if rows else torch.empty(0, length)


def probabilities(logits: Tensor, sampler: Sampler) -> Tensor:
    """Guided logits `(..., K)` -> float32 probabilities that codes are drawn with; at temperature 0 all of one code."""
    if sampler.temperature == 0:
        return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()
    logits = logits.float() / sampler.temperature
    return filter_logits(logits, sampler.top_k, sampler.top_p, sampler.min_p).softmax(dim=-1)


def pick(weights: Tensor, uniform: Tensor) -> Tensor:
    """Weights `(B, K)`, not negative, and uniforms `(B,)` in [0, 1) -> codes int64 `(B,)`, drawn in proportion.

    The distribution function is inverted: one random number a code, where an exponential race needs K.
    """
    # float64, and u below 1 by 2^-24: the product stays below the total, so no code of probability 0 is drawn.
    reached = weights.cumsum(dim=-1, dtype=torch.float64 if weights.device.type != "mps" else torch.float32)
    target = uniform.to(reached)[:, None] * reached[:, -1:]
    return torch.searchsorted(reached, target, right=True)[:, 0].clamp_(max=weights.shape[-1] - 1)


def draw(logits: Tensor, sampler: Sampler, uniform: Tensor) -> Tensor:
    """Logits `(B, K)` and uniforms `(B,)` in [0, 1) -> codes int64 `(B,)`."""
    if sampler.temperature == 0:
        return logits.argmax(dim=-1)
    return pick(probabilities(logits, sampler), uniform)
