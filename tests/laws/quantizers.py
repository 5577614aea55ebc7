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

from tokenizers_vq.quantizers import (
    BsqQuantizer,
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


def rows_of(features: Tensor) -> Tensor:
    """`(B, D, *grid)` -> float64 `(N, D)`."""
    return features.detach().double().movedim(1, -1).reshape(-1, features.shape[1])


def excess(costs: Tensor, codes: Tensor) -> Tensor:
    """Costs `(N, K)`, codes of as many positions -> `(N,)`: what each code costs above the least."""
    return costs.gather(1, codes.reshape(-1, 1)).squeeze(1) - costs.amin(1)


def spread_out(quantizer: Quantizer) -> None:
    """Codebooks of `VectorQuantizer`s, nested ones too, as far apart as features are, so that many codes are used."""
    for module in quantizer.modules():
        if isinstance(module, IbqQuantizer):
            spread_ibq(module)
        if isinstance(module, SimVqQuantizer):
            spread_simvq(module)
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


def logit_excess(quantizer: Quantizer, features: Tensor, codes: Tensor) -> Tensor:
    """How far the chosen logit lies under the largest."""
    assert isinstance(quantizer, GumbelQuantizer)
    logits, projection = rows_of(features), quantizer.projection
    if projection is not None:
        logits = F.linear(logits, projection.weight.double(), projection.bias.double())
    return excess(-logits, codes)


def bounded64(book: Quantizer, features: Tensor) -> Tensor:
    """float64 features where a book's vectors lie: in FSQ's box, on BSQ's sphere, as they are."""
    if isinstance(book, FsqQuantizer):
        half = torch.tensor([levels // 2 for levels in book.config.levels])
        rows = bound64(book, features) / half
        return rows.reshape(len(features), *features.shape[2:], -1).movedim(-1, 1)
    return F.normalize(features.double(), dim=1) if isinstance(book, BsqQuantizer) else features.double()


def scale64(book: Quantizer) -> Tensor:
    """How much smaller the level behind a book is, by channel."""
    if isinstance(book, FsqQuantizer):
        return 1 / (torch.tensor(book.config.levels, dtype=torch.float64) - 1).clamp(min=2)
    return torch.full((book.dim,), 0.5 if isinstance(book, (LfqQuantizer, BsqQuantizer)) else 1.0, dtype=torch.float64)


def table64(book: Quantizer, scale: Tensor, first: bool) -> Tensor:
    """float64 `(K, D)`: a book's vectors as a level adds them; behind the first about the middle of their range."""
    table = rows_of(book.lookup(torch.arange(book.layout((1,)).sizes[0])[None]))
    if isinstance(book, FsqQuantizer) and not first:
        table = table + torch.tensor([0.0 if levels % 2 else 1 / levels for levels in book.config.levels])
    return table * scale


def book_costs(book: Quantizer, rows: Tensor, table: Tensor) -> Tensor:
    """`(N, D)`, `(K, D)` -> `(N, K)` by the book's own score."""
    if isinstance(book, IbqQuantizer):
        return -rows @ table.T
    if isinstance(book, GumbelQuantizer):
        return -F.linear(rows, book.projection.weight.double(), book.projection.bias.double())
    cosine = isinstance(book, VectorQuantizer) and book.config.distance == "cosine"
    return torch.cdist(F.normalize(rows, dim=1) if cosine else rows, table)


def residual_excess(quantizer: Quantizer, features: Tensor, codes: Tensor) -> Tensor:
    """Each level's cost above its best code's, given the codes of the levels before."""
    assert isinstance(quantizer, ResidualQuantizer)
    residual = rows_of(bounded64(quantizer.levels[0], features.detach()))
    results, scale = [], torch.ones(quantizer.dim, dtype=torch.float64)
    for number, (level, chosen) in enumerate(zip(quantizer.levels, codes.unbind(-1), strict=True)):
        table = table64(level, scale, number == 0)
        results.append(excess(book_costs(level, residual, table), chosen))
        residual = residual - table[chosen.flatten()]
        scale = scale * scale64(level)
    return torch.stack(results)


def identity(quantizer: Quantizer, features: Tensor) -> Tensor:
    """Straight through the features."""
    return features


def product_excess(quantizer: Quantizer, features: Tensor, codes: Tensor) -> Tensor:
    """Each group's cost above its best code's."""
    assert isinstance(quantizer, ProductQuantizer)
    parts = features.detach().split([group.in_dim for group in quantizer.groups], 1)
    results = []
    for group, part, chosen in zip(quantizer.groups, parts, codes.unbind(-1), strict=True):
        table = table64(group, torch.ones(group.dim, dtype=torch.float64), True)
        results.append(excess(book_costs(group, rows_of(bounded64(group, part)), table), chosen))
    return torch.stack(results)


def multiscale_excess(quantizer: Quantizer, features: Tensor, codes: Any) -> Tensor:
    """Each scale's cost above its best code's, given the codes of the scales before."""
    assert isinstance(quantizer, MultiscaleQuantizer)
    residual, results, config = bounded64(quantizer.books[0], features.detach()), [], quantizer.config
    for scale, (book, chosen) in enumerate(zip(quantizer.books, codes, strict=True)):
        table = table64(book, torch.ones(book.dim, dtype=torch.float64), True)
        small = F.adaptive_avg_pool2d(residual, config.grids[scale])
        results.append(excess(book_costs(book, rows_of(small), table), chosen))
        h = F.interpolate(table[chosen].movedim(-1, 1), size=config.grids[-1], mode="bicubic")
        weight, bias = (p.detach().double() for p in quantizer.phis[scale].parameters())  # as many phis as scales
        residual = residual - (1 - config.phi_ratio) * h - config.phi_ratio * F.conv2d(h, weight, bias, padding=1)
    return torch.cat(results)


def through_levels(quantizer: Quantizer, features: Tensor) -> Tensor:
    """The softmax over all of each level's codes, of what the levels before leave, all of which pass gradients on."""
    assert isinstance(quantizer, ResidualQuantizer)
    residual, total = features, torch.zeros(())
    for level, chosen in zip(quantizer.levels, quantizer.encode(features).unbind(-1), strict=True):
        soft = over_all_codes(level, residual)
        vector = level.lookup(chosen).detach() + soft - soft.detach()
        residual, total = residual - vector, total + vector
    return total


def turned_levels(quantizer: Quantizer, features: Tensor) -> Tensor:
    """Each level's rotation of what the levels before leave, all of which pass gradients on."""
    assert isinstance(quantizer, ResidualQuantizer)
    residual, total = features, torch.zeros(())
    for level in quantizer.levels:
        vector = rotated(level, residual)
        residual, total = residual - vector, total + vector
    return total


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


def in_box(quantizer: Quantizer, features: Tensor) -> Tensor:
    """The gradient of the bound of the first book, straight through the levels."""
    levels = quantizer.levels if isinstance(quantizer, ResidualQuantizer) else quantizer.books
    return bounded(levels[0], features)


def by_groups(*estimators: Callable[[Quantizer, Tensor], Tensor]) -> Callable[[Quantizer, Tensor], Tensor]:
    """Each group's own estimator."""

    def estimate(quantizer: Quantizer, features: Tensor) -> Tensor:
        assert isinstance(quantizer, ProductQuantizer)
        parts = features.split([group.in_dim for group in quantizer.groups], 1)
        return torch.cat([f(*pair) for f, *pair in zip(estimators, quantizer.groups, parts, strict=True)], 1)

    return estimate


def bound64(quantizer: FsqQuantizer, features: Tensor) -> Tensor:
    """The bound in float64, as its two listings write it."""
    levels = torch.tensor(quantizer.config.levels, dtype=torch.float64)
    offset = torch.where(levels % 2 == 1, 0.0, 0.5)
    if quantizer.config.bound == "paper":
        half = (levels - 1) * (1 - quantizer.config.epsilon) / 2
        return torch.tanh(rows_of(features) + torch.tan(offset / half)) * half - offset
    half = (levels - 1) * (1 + quantizer.config.epsilon) / 2
    return torch.tanh(rows_of(features) + torch.atanh(offset / half)) * half - offset


def level_excess(quantizer: Quantizer, features: Tensor, codes: Tensor) -> Tensor:
    """Distance above the nearest level's, channel by channel."""
    assert isinstance(quantizer, FsqQuantizer)
    bounded, values = bound64(quantizer, features), rows_of(quantizer.lookup(codes))
    result = []
    for channel, levels in enumerate(quantizer.config.levels):
        to_levels = (bounded[:, channel, None] - (torch.arange(levels) - levels // 2)).abs().amin(1)
        result.append((bounded[:, channel] - values[:, channel] * (levels // 2)).abs() - to_levels)
    return torch.stack(result)


def bounded(quantizer: Quantizer, features: Tensor) -> Tensor:
    """The gradient of the bound, straight through the rounding."""
    assert isinstance(quantizer, FsqQuantizer)
    half = torch.tensor([levels // 2 for levels in quantizer.config.levels])
    return (quantizer.bounded(features.movedim(1, -1)) / half).movedim(-1, 1)


def sign_excess(quantizer: Quantizer, features: Tensor, codes: Tensor) -> Tensor:
    """Distance above the nearest corner's of the cube, or of the cube inside the sphere."""
    rows, table = rows_of(features), rows_of(quantizer.lookup(all_codes(quantizer, (1, 1))))
    if isinstance(quantizer, BsqQuantizer):
        rows = F.normalize(rows, dim=1)
    return excess(torch.cdist(rows, table), codes)


def normalised(quantizer: Quantizer, features: Tensor) -> Tensor:
    """Straight through the normalised features."""
    return F.normalize(features, dim=1)


def dot_excess(quantizer: Quantizer, features: Tensor, codes: Tensor) -> Tensor:
    """Dot product below the largest."""
    assert isinstance(quantizer, IbqQuantizer)
    return excess(-rows_of(features) @ quantizer.weight.detach().double().T, codes)


def over_all_codes(quantizer: Quantizer, features: Tensor) -> Tensor:
    """The softmax over all codes, times them (arXiv 2412.02692, eq. 5)."""
    assert isinstance(quantizer, IbqQuantizer)
    weight = quantizer.weight.detach()
    return (torch.softmax(features.movedim(1, -1) @ weight.T, -1) @ weight).movedim(-1, 1)


def spread_ibq(quantizer: Quantizer) -> None:
    """Codes of one length, else the longest take all and do not keep themselves under a dot product."""
    assert isinstance(quantizer, IbqQuantizer)
    quantizer.weight.data.copy_(F.normalize(quantizer.weight.data, dim=1))


def spread_simvq(quantizer: Quantizer) -> None:
    """A basis as long as features are."""
    assert isinstance(quantizer, SimVqQuantizer)
    quantizer.basis.copy_(torch.randn_like(quantizer.basis))


def mapped_excess(quantizer: Quantizer, features: Tensor, codes: Tensor) -> Tensor:
    """Distance above the nearest mapped code's; the mapped codebook is the one that is used."""
    assert isinstance(quantizer, SimVqQuantizer)
    return excess(torch.cdist(rows_of(features), quantizer.codebook.detach().double()), codes)


def rotated(quantizer: Quantizer, features: Tensor) -> Tensor:
    """Each vector times its own matrix, which turns it onto its code and scales it, built in float64."""
    assert isinstance(quantizer, VectorQuantizer)
    source = vector_estimator(quantizer, features)
    z, q = rows_of(source), rows_of(quantizer.lookup(quantizer.encode(features)))
    a, b = F.normalize(z, dim=1), F.normalize(q, dim=1)
    r, eye = F.normalize(a + b, dim=1), torch.eye(z.shape[1], dtype=torch.float64)
    turn = eye - 2 * torch.einsum("ni,nj->nij", r, r) + 2 * torch.einsum("ni,nj->nij", b, a)
    assert torch.allclose(torch.einsum("nij,nkj->nik", turn, turn), eye.expand_as(turn), atol=1e-9)
    turn = turn * (q.norm(dim=1) / z.norm(dim=1))[:, None, None]
    assert torch.allclose(torch.einsum("nij,nj->ni", turn, z), q, atol=1e-9)
    shaped = turn.float().reshape(len(features), *features.shape[2:], *turn.shape[1:])
    return torch.einsum("b...ij,bj...->bi...", shaped, source)


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


def normalised_groups(quantizer: Quantizer, features: Tensor) -> Tensor:
    """Straight through the normalisation of each group."""
    assert isinstance(quantizer, ProductQuantizer)
    return torch.cat([F.normalize(part, dim=1) for part in features.chunk(len(quantizer.groups), 1)], 1)


_GUMBEL = {
    "idempotence": "codes are read off logits, which a code's vector is not",
    "estimator": "training draws noise; tests/quantizers/test_gumbel.py checks the gradient under equal noise",
    "beta": "there is no commitment term",
    "processes": "processes draw different noise; tests/quantizers/test_gumbel.py compares the state",
}

_NO_TERM = {"beta": _NO_BETA}
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
    Case("lfq", LfqQuantizer, {"bits": 6, "entropy_group": 4}, excess=sign_excess, estimator=identity),
    Case("lfq-plain", LfqQuantizer, {"bits": 9, "entropy_weight": 0.0}, excess=sign_excess, estimator=identity),
    Case("bsq", BsqQuantizer, {"bits": 7, "beta": 0.25}, excess=sign_excess, estimator=normalised),
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
