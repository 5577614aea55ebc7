"""The quantizers that every law is tried on: a new one gets them all by one line in CASES.

A quantizer's own facts (its score, its estimator) are functions of a case; a law that cannot apply is named in `exempt`
with its reason, which the tests show and `python -m tests.laws.table` prints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq.quantizers import GumbelQuantizer, Quantizer, ResidualQuantizer, VectorQuantizer

LAWS = {
    "lookup": "lookup(codes) equals forward's features, bitwise",
    "idempotence": "a code's vector keeps its code",
    "nearest": "codes equal a float64 search by the quantizer's own score",
    "finite": "non-finite features are an error",
    "estimator": "the gradient that the config names",
    "losses": "each loss trains what its name says, every parameter gets a gradient",
    "beta": "beta multiplies the commitment",
    "eval": "eval changes no buffer, draws nothing, B images equal B batches of one",
    "processes": "two processes equal one: state, gradients",
    "state": "state round-trips, codes bitwise equal",
    "grids": "other grids are taken, or refused in one line",
    "range": "codes in range, statistics equal a direct count",
    "precision": "float32 inside bf16 autocast",
}
"""laws by the name that `exempt` uses"""


def rows_of(features: Tensor) -> Tensor:
    """`(B, D, *grid)` -> float64 `(N, D)`."""
    return features.detach().double().movedim(1, -1).reshape(-1, features.shape[1])


def excess(costs: Tensor, codes: Tensor) -> Tensor:
    """Costs `(N, K)`, codes of as many positions -> `(N,)`: what each code costs above the least."""
    return costs.gather(1, codes.reshape(-1, 1)).squeeze(1) - costs.amin(1)


def spread_out(quantizer: Quantizer) -> None:
    """Codebooks of `VectorQuantizer`s, nested ones too, as far apart as features are, so that many codes are used."""
    for module in quantizer.modules():
        if isinstance(module, VectorQuantizer):
            with torch.no_grad():
                module.weight.copy_(module._as_looked_up(torch.randn_like(module.weight)))
                if "cluster_sum" in module.state_dict():
                    module.cluster_sum.copy_(module.weight)


def vector_excess(quantizer: Quantizer, features: Tensor, codes: Tensor) -> Tensor:
    """Distance above the nearest code's; of normalised vectors in the cosine form."""
    assert isinstance(quantizer, VectorQuantizer)
    rows, book = rows_of(features), quantizer.weight.detach().double()
    if quantizer.config.distance == "cosine":
        rows, book = F.normalize(rows, dim=1), F.normalize(book, dim=1)
    return excess(torch.cdist(rows, book), codes)


def vector_estimator(quantizer: Quantizer, features: Tensor) -> Tensor:
    """Straight through the features, or their normalisation."""
    assert isinstance(quantizer, VectorQuantizer)
    config = quantizer.config
    through_norm = config.distance == "cosine" and config.gradient_through_norm
    return F.normalize(features, dim=1) if through_norm else features


def all_codes(quantizer: Quantizer, grid: tuple[int, ...]) -> Any:
    """Every code of a quantizer of one stream in one row; random codes on `grid` where there are several streams."""
    layout = quantizer.layout((1, 1))
    if len(layout.sizes) == 1:
        return torch.arange(min(layout.sizes[0], 4096)).reshape(1, 1, -1)
    layout = quantizer.layout(grid)
    sizes = torch.tensor(layout.sizes)[layout.streams()]
    return layout.unflatten((torch.rand(4, layout.length) * sizes).long())


@dataclass(frozen=True)
class Case:
    """A quantizer, its settings and facts, and why a law does not apply to it."""

    name: str
    quantizer: Callable[..., Quantizer]
    """the class"""
    fields: dict[str, Any] = field(default_factory=dict)
    """its keyword arguments"""
    exempt: dict[str, str] = field(default_factory=dict)
    """law -> one line: why it does not apply"""
    spread: Callable[[Quantizer], None] = spread_out
    """makes the codes as far apart as features are (in place)"""
    excess: Callable[[Quantizer, Tensor, Any], Tensor] = vector_excess
    """(quantizer, features, codes) -> float64, any shape: what each code costs above the best, naive search (nearest)"""
    estimator: Callable[[Quantizer, Tensor], Tensor] = vector_estimator
    """(quantizer, features) -> a tensor whose gradient is the one that the config names (estimator)"""
    codes: Callable[[Quantizer, tuple[int, ...]], Any] = all_codes
    """(quantizer, grid) -> codes whose vectors keep them (idempotence)"""
    weighted: str = "commitment"
    """name of the loss that beta multiplies (beta)"""
    grid: tuple[int, ...] = (5, 7)
    """grid of the features"""

    def build(self, **changes: Any) -> Quantizer:
        """The quantizer in train mode, with other settings."""
        return self.quantizer(**{**self.fields, **changes})

    def spread_build(self) -> Quantizer:
        """The quantizer with codes as far apart as features are."""
        quantizer = self.build()
        self.spread(quantizer)
        return quantizer

    def features(self, batch: int = 4) -> Tensor:
        """Random `(batch, in_dim, *grid)`."""
        return torch.randn(batch, self.build().in_dim, *self.grid)


_FITTED = {"losses": "k-means moves the codebook in these batches, its gradient is zero by design"}


def vector(name: str, exempt: dict[str, str] | None = None, weighted: str = "commitment", **fields: Any) -> Case:
    """A case of `VectorQuantizer`."""
    return Case(name, VectorQuantizer, {"num_codes": 48, "dim": 6, **fields}, exempt or {}, weighted=weighted)


def logit_excess(quantizer: Quantizer, features: Tensor, codes: Tensor) -> Tensor:
    """How far the chosen logit lies under the largest."""
    assert isinstance(quantizer, GumbelQuantizer)
    logits, projection = rows_of(features), quantizer.projection
    if projection is not None:
        logits = F.linear(logits, projection.weight.double(), projection.bias.double())
    return excess(-logits, codes)


def residual_excess(quantizer: Quantizer, features: Tensor, codes: Tensor) -> Tensor:
    """Each level's distance above its nearest code's, given the codes of the levels before."""
    assert isinstance(quantizer, ResidualQuantizer)
    residual, results = rows_of(features), []
    for level, chosen in zip(quantizer.levels, codes.unbind(-1), strict=True):
        book = level.codebook.detach().double()
        rows = F.normalize(residual, dim=1) if level.config.distance == "cosine" else residual
        results.append(excess(torch.cdist(rows, book), chosen))
        residual = residual - book[chosen.flatten()]
    return torch.stack(results)


def identity(quantizer: Quantizer, features: Tensor) -> Tensor:
    """Straight through the features."""
    return features


_GREEDY = {"idempotence": "codes are chosen greedily, another chain may add up to the same vector or come nearer"}


def residual(name: str, **fields: Any) -> Case:
    """A case of `ResidualQuantizer`."""
    fields = {"levels": 3, "num_codes": 24, "dim": 6, **fields}
    return Case(name, ResidualQuantizer, fields, _GREEDY, excess=residual_excess, estimator=identity)


_GUMBEL = {
    "idempotence": "codes are read off logits, which a code's vector is not",
    "estimator": "training draws noise; tests/quantizers/test_gumbel.py checks the gradient under equal noise",
    "beta": "there is no commitment term",
    "processes": "processes draw different noise; tests/quantizers/test_gumbel.py compares the state",
}

CASES = [
    vector("euclidean"),
    vector("euclidean-legacy-beta", legacy_beta=True, weighted="codebook"),
    vector("cosine", distance="cosine"),
    vector("cosine-identity", distance="cosine", gradient_through_norm=False),
    vector("factorised", num_codes=37, dim=2, distance="cosine", revive_after=3),
    vector("ema", codebook="ema", revive_after=2),
    vector("ema-cosine", codebook="ema", distance="cosine"),
    vector("kmeans", _FITTED, kmeans_batches=3, revive_after=2),
    # More codes than the batch of the laws has features (140).
    vector("kmeans-ema", num_codes=200, codebook="ema", distance="cosine", kmeans_batches=2),
    vector("entropy", entropy_weight=0.1, entropy_temperature=1.0),
    vector("entropy-cosine", distance="cosine", entropy_weight=0.1),
    residual("residual"),
    residual("residual-sizes", num_codes=(48, 24, 12), revive_after=3, dropout=0.5),
    residual("residual-ema", codebook="ema", kmeans_batches=2),
    residual("residual-shared", shared=True, dropout=0.5),
    residual("residual-shared-ema", shared=True, codebook="ema", revive_after=2),
    residual("residual-cosine", shared=True, distance="cosine"),
    Case("gumbel", GumbelQuantizer, {"num_codes": 48, "dim": 6, "in_dim": 9}, _GUMBEL, excess=logit_excess),
    Case("gumbel-logits", GumbelQuantizer, {"num_codes": 48, "dim": 6, "project": False}, _GUMBEL, excess=logit_excess),
    Case(
        "gumbel-hard",
        GumbelQuantizer,
        {"num_codes": 48, "dim": 6, "straight_through": True},
        _GUMBEL,
        excess=logit_excess,
    ),
]


def by_name(name: str) -> Case:
    """The case of that name."""
    return next(case for case in CASES if case.name == name)
