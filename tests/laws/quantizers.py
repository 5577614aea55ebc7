"""The quantizers that every law is tried on: a new one gets them all by one line in CASES.

A quantizer's own facts (its score, its estimator) are functions of a case, which stand in `facts`; a law that
cannot apply is named in `exempt` with its reason, which the tests show and `python -m tests.laws.table` prints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.laws.facts import (
    all_codes,
    bounded,
    bridged_excess,
    by_groups,
    dot_excess,
    each_scale,
    identity,
    in_box,
    level_excess,
    logit_excess,
    mapped_excess,
    multiscale_excess,
    normalised,
    normalised_groups,
    over_all_codes,
    product_excess,
    residual_excess,
    rotated,
    sign_excess,
    spread_ibq,
    spread_out,
    spread_simvq,
    stepped,
    through_levels,
    turned_levels,
    vector_estimator,
    vector_excess,
)
from tokenizers_vq.quantizers import (
    BsqQuantizer,
    DiveqQuantizer,
    FsqQuantizer,
    GumbelQuantizer,
    IbqQuantizer,
    LfqQuantizer,
    MultiscaleQuantizer,
    ProductQuantizer,
    Quantizer,
    ResidualQuantizer,
    SimVqQuantizer,
    VectorQuantizer,
    VqBridgeQuantizer,
)

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
    "partial": "partial of all levels or scales equals lookup, bitwise; of some, what they add",
}
"""laws by the name that `exempt` uses"""


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
    """(quantizer, features, codes) -> float64, any shape: cost of each code above a naive search's best (nearest)"""
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


def vector(
    name: str,
    exempt: dict[str, str] | None = None,
    weighted: str = "commitment",
    estimate: Callable[[Quantizer, Tensor], Tensor] = vector_estimator,
    **fields: Any,
) -> Case:
    """A case of `VectorQuantizer`."""
    fields = {"num_codes": 48, "dim": 6, **fields}
    return Case(name, VectorQuantizer, fields, exempt or {}, estimator=estimate, weighted=weighted)


_GREEDY = {"idempotence": "codes are chosen greedily, another chain may add up to the same vector or come nearer"}


def residual(name: str, **fields: Any) -> Case:
    """A case of `ResidualQuantizer` with the one codebook of before it had books."""
    fields = {"levels": 3, "num_codes": 24, "dim": 6, **fields}
    return Case(name, ResidualQuantizer, fields, _GREEDY, excess=residual_excess, estimator=identity)


BOOKS: dict[str, dict[str, Any]] = {
    "vector": {"kind": "vector", "num_codes": 24, "dim": 6},
    "fsq": {"kind": "fsq", "levels": (5, 4, 2)},
    "lfq": {"kind": "lfq", "bits": 4},
    "bsq": {"kind": "bsq", "bits": 5, "beta": 0.25},
    "simvq": {"kind": "simvq", "num_codes": 24, "dim": 6},
    "ibq": {"kind": "ibq", "num_codes": 24, "dim": 6},
    "gumbel": {"kind": "gumbel", "num_codes": 24, "dim": 6},
    "rotation": {"kind": "vector", "num_codes": 24, "dim": 6, "estimator": "rotation"},
    "cosine": {"kind": "vector", "num_codes": 24, "dim": 4, "distance": "cosine"},
    "ifsq": {"kind": "fsq", "levels": (5, 4, 2), "activation": "sigmoid"},
    "infinity": {"kind": "bsq", "bits": 12, "code_bits": 6, "first_channel": "most", "beta": 0.25},
    "diveq": {"kind": "diveq", "num_codes": 24, "dim": 6, "noise": 0.0},
    "bridge": {"kind": "vqbridge", "num_codes": 36, "dim": 6, "width": 16, "layers": 1, "heads": 2, "patch": 2},
}
"""configs of books, by name"""


def of_books(
    name: str,
    kind: Callable[..., Quantizer],
    fields: dict[str, Any],
    exempt: dict[str, str] | None = None,
    estimator: Callable[[Quantizer, Tensor], Tensor] = identity,
    weighted: str = "commitment",
) -> Case:
    """A case of a quantizer of books."""
    greedy = {} if kind is ProductQuantizer else _GREEDY
    found = {ResidualQuantizer: residual_excess, ProductQuantizer: product_excess}.get(kind, multiscale_excess)
    return Case(name, kind, fields, greedy | (exempt or {}), excess=found, estimator=estimator, weighted=weighted)


_NO_BETA = "there is no commitment term"
_FSQ = {
    "idempotence": "codes are read off bounded features; the bound moves a code's own vector, as the paper has it",
    "beta": _NO_BETA,
    "losses": "there is no loss and no parameter",
}
_SAMPLED = {
    "processes": "processes draw different codes; tests/quantizers/test_estimators.py checks the draws",
}


def multiscale(name: str, scales: tuple[Any, ...], **fields: Any) -> Case:
    """A case of `MultiscaleQuantizer`, one phi a scale."""
    fields = {"scales": scales, "num_codes": 24, "dim": 6, "phis": len(scales), **fields}
    return Case(name, MultiscaleQuantizer, fields, _GREEDY, excess=multiscale_excess, estimator=identity)


_GUMBEL = {
    "idempotence": "codes are read off logits, which a code's vector is not",
    "estimator": "training draws noise; tests/quantizers/test_gumbel.py checks the gradient under equal noise",
    "beta": "there is no commitment term",
    "processes": "processes draw different noise; tests/quantizers/test_gumbel.py compares the state",
}

_NO_TERM = {"beta": _NO_BETA}
_NOISE = {
    "estimator": "training draws noise; tests/golden/test_parts_newer.py compares it under recorded noise",
    "processes": "processes draw different noise; tests/quantizers/test_diveq.py compares the state",
}
_PASSED = {"losses": "gradients of a level's terms reach the levels before, whose estimators pass them on"}
SCALES = {"scales": (1, (2, 3), (5, 7)), "phis": 3}
FINE = {"scales": ((3, 4), (4, 6), (5, 7)), "phis": 3}  # means of more features round to zero, which trains no phi

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
    vector("rotation", estimator="rotation", estimate=rotated),
    vector("rotation-cosine", estimator="rotation", distance="cosine", estimate=rotated),
    vector("sampled", _SAMPLED, sample_temperature=0.5),
    Case("fsq", FsqQuantizer, {"levels": (8, 5, 5, 3)}, _FSQ, excess=level_excess, estimator=bounded),
    Case(
        "fsq-atanh",
        FsqQuantizer,
        {"levels": (8, 8, 2, 5), "bound": "atanh"},
        _FSQ,
        excess=level_excess,
        estimator=bounded,
    ),
    Case(
        "ifsq",
        FsqQuantizer,
        {"levels": (9, 4, 2, 5), "activation": "sigmoid"},
        _FSQ,
        excess=level_excess,
        estimator=bounded,
    ),
    Case("lfq", LfqQuantizer, {"bits": 6, "entropy_group": 4}, excess=sign_excess, estimator=identity),
    Case("lfq-plain", LfqQuantizer, {"bits": 9, "entropy_weight": 0.0}, excess=sign_excess, estimator=identity),
    Case(
        "lfq-groups",
        LfqQuantizer,
        {"bits": 12, "code_bits": 4, "entropy_group": 4, "entropy_mixed": True},
        excess=sign_excess,
        estimator=identity,
    ),
    Case("lfq-beyond-62-bits", LfqQuantizer, {"bits": 80}, excess=sign_excess, estimator=identity),
    Case("bsq", BsqQuantizer, {"bits": 7, "beta": 0.25}, excess=sign_excess, estimator=normalised),
    Case(
        "bsq-most-first",
        BsqQuantizer,
        {"bits": 12, "code_bits": 6, "beta": 0.25, "first_channel": "most"},
        excess=sign_excess,
        estimator=normalised,
    ),
    Case(
        "ibq",
        IbqQuantizer,
        {"num_codes": 48, "dim": 6},
        spread=spread_ibq,
        excess=dot_excess,
        estimator=over_all_codes,
        weighted="codebook",
    ),
    Case("simvq", SimVqQuantizer, {"num_codes": 48, "dim": 6}, {}, spread_simvq, mapped_excess, identity),
    Case(
        "diveq",
        DiveqQuantizer,
        {"num_codes": 48, "dim": 6, "noise": 0.0, "revive_after": 3},
        _NO_TERM,
        estimator=stepped,
    ),
    Case("diveq-noise", DiveqQuantizer, {"num_codes": 48, "dim": 6, "noise": 0.1}, _NO_TERM | _NOISE),
    Case("diveq-curve", DiveqQuantizer, {"num_codes": 48, "dim": 6, "space_filling": True}, _NO_TERM | _NOISE),
    Case(
        "vqbridge",
        VqBridgeQuantizer,
        {"num_codes": 64, "dim": 6, "width": 16, "heads": 2, "patch": 2},
        excess=bridged_excess,
        estimator=identity,
    ),
    Case(
        "vqbridge-mlp",
        VqBridgeQuantizer,
        {"num_codes": 48, "dim": 6, "width": 16, "network": "mlp", "estimator": "rotation"},
        excess=bridged_excess,
        estimator=rotated,
    ),
    residual("residual"),
    residual("residual-sizes", num_codes=(48, 24, 12), revive_after=3, dropout=0.5),
    residual("residual-ema", codebook="ema", kmeans_batches=2),
    residual("residual-shared", shared=True, dropout=0.5),
    residual("residual-shared-ema", shared=True, codebook="ema", revive_after=2),
    residual("residual-cosine", shared=True, distance="cosine"),
    Case(
        "product",
        ProductQuantizer,
        {"groups": 3, "num_codes": 24, "dim": 6, "revive_after": 2},
        estimator=identity,
        excess=product_excess,
    ),
    Case(
        "product-sizes",
        ProductQuantizer,
        {"groups": 2, "num_codes": (24, 12), "dim": 6, "distance": "cosine", "codebook": "ema"},
        estimator=normalised_groups,
        excess=product_excess,
    ),
    multiscale("multiscale", ((1, 1), (2, 3), (4, 4), (5, 7)), revive_after=8),
    multiscale("multiscale-ratio", (1, (2, 7), (5, 7)), phi_ratio=0.25),
    of_books("residual-fsq", ResidualQuantizer, {"levels": 3, "book": BOOKS["fsq"]}, _NO_TERM, in_box),
    of_books("residual-lfq", ResidualQuantizer, {"levels": 3, "book": BOOKS["lfq"], "dropout": 0.5}),
    of_books("residual-bsq", ResidualQuantizer, {"levels": 3, "book": BOOKS["bsq"]}, {}, normalised),
    of_books("residual-simvq", ResidualQuantizer, {"levels": 2, "book": BOOKS["simvq"], "shared": True}),
    of_books(
        "residual-ibq", ResidualQuantizer, {"levels": 2, "book": BOOKS["ibq"]}, _PASSED, through_levels, "codebook"
    ),
    of_books("residual-gumbel", ResidualQuantizer, {"levels": 2, "book": BOOKS["gumbel"]}, _GUMBEL | _PASSED),
    of_books("residual-rotation", ResidualQuantizer, {"levels": 2, "book": BOOKS["rotation"]}, {}, turned_levels),
    of_books("residual-mixed", ResidualQuantizer, {"levels": 2, "book": (BOOKS["simvq"], BOOKS["vector"])}),
    of_books("product-fsq", ProductQuantizer, {"book": BOOKS["fsq"]}, _FSQ, by_groups(bounded, bounded)),
    of_books("product-simvq", ProductQuantizer, {"book": BOOKS["simvq"]}),
    of_books(
        "product-mixed",
        ProductQuantizer,
        {"groups": 3, "book": (BOOKS["vector"], BOOKS["bsq"], BOOKS["lfq"])},
        {},
        by_groups(identity, normalised, identity),
    ),
    of_books("multiscale-fsq", MultiscaleQuantizer, {**FINE, "book": BOOKS["fsq"]}, _NO_TERM, in_box),
    of_books("multiscale-lfq", MultiscaleQuantizer, {**SCALES, "book": BOOKS["lfq"]}),
    of_books("multiscale-bsq", MultiscaleQuantizer, {**SCALES, "book": BOOKS["bsq"]}, {}, normalised),
    of_books("multiscale-list", MultiscaleQuantizer, {**SCALES, "book": (BOOKS["vector"], *[BOOKS["simvq"]] * 2)}),
    of_books("residual-ifsq", ResidualQuantizer, {"levels": 3, "book": BOOKS["ifsq"]}, _NO_TERM, in_box),
    of_books("residual-bridge", ResidualQuantizer, {"levels": 2, "book": BOOKS["bridge"]}),
    of_books("product-cosine", ProductQuantizer, {"groups": 3, "book": BOOKS["cosine"]}, {}, normalised_groups),
    of_books("product-diveq", ProductQuantizer, {"book": BOOKS["diveq"]}, _NO_TERM, by_groups(stepped, stepped)),
    of_books(
        "multiscale-infinity",
        MultiscaleQuantizer,
        {**SCALES, "phis": 0, "book": BOOKS["infinity"], "confine": "each", "enlarging": "bilinear"},
        {},
        each_scale,
    ),
    of_books(
        "multiscale-each",
        MultiscaleQuantizer,
        {**SCALES, "book": BOOKS["bsq"], "confine": "each", "phi_ratio": 0.25},
        {},
        each_scale,
    ),
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
