"""What the laws know of quantizers by themselves: float64 searches, estimators, spread codebooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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
        if isinstance(module, DiveqQuantizer):
            module.weight.data.copy_(torch.randn_like(module.weight))
        if isinstance(module, VectorQuantizer):
            with torch.no_grad():
                module.weight.copy_(module._as_looked_up(torch.randn_like(module.weight)))
                if "cluster_sum" in module.state_dict():
                    module.cluster_sum.copy_(module.weight)


def vector_excess(quantizer: Quantizer, features: Tensor, codes: Tensor) -> Tensor:
    """Distance above the nearest code's; of normalised vectors in the cosine form."""
    assert isinstance(quantizer, (VectorQuantizer, DiveqQuantizer))
    rows, book = rows_of(features), quantizer.weight.detach().double()
    if isinstance(quantizer, VectorQuantizer) and quantizer.config.distance == "cosine":
        rows, book = F.normalize(rows, dim=1), F.normalize(book, dim=1)
    return excess(torch.cdist(rows, book), codes)


def vector_estimator(quantizer: Quantizer, features: Tensor) -> Tensor:
    """Straight through the features, or their normalisation."""
    assert isinstance(quantizer, VectorQuantizer)
    config = quantizer.config
    through_norm = config.distance == "cosine" and config.gradient_through_norm
    return F.normalize(features, dim=1) if through_norm else features


def every_code(quantizer: Quantizer) -> Tensor:
    """Every code, `(1, 1, n)`, or `(1, 1, n, L)` of several at a position."""
    sizes = quantizer.layout((1, 1)).sizes
    parts = [torch.arange(sizes[0] ** len(sizes)) // sizes[0] ** level % sizes[0] for level in range(len(sizes))]
    return (torch.stack(parts, -1) if len(sizes) > 1 else parts[0])[None, None]


def all_codes(quantizer: Quantizer, grid: tuple[int, ...]) -> Any:
    """Every code of a quantizer of one stream in one row; random codes on `grid` where there are several streams."""
    layout = quantizer.layout((1, 1))
    if len(layout.sizes) == 1:
        return torch.arange(min(layout.sizes[0], 4096)).reshape(1, 1, -1)
    layout = quantizer.layout(grid)
    sizes = torch.tensor(layout.sizes)[layout.streams()]
    return layout.unflatten((torch.rand(4, layout.length) * sizes).long())


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
    table = rows_of(book.lookup(every_code(book)))
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
    results, config = [], quantizer.config
    each = config.confine == "each"
    residual = features.detach().double() if each else bounded64(quantizer.books[0], features.detach())
    for scale, (book, chosen) in enumerate(zip(quantizer.books, codes, strict=True)):
        table = table64(book, torch.ones(book.dim, dtype=torch.float64), True)
        small = F.adaptive_avg_pool2d(residual, config.grids[scale])
        number = (chosen * book.num_codes ** torch.arange(book.depth)).sum(-1) if book.depth > 1 else chosen
        results.append(excess(book_costs(book, rows_of(bounded64(book, small) if each else small), table), number))
        h = F.interpolate(table[number].movedim(-1, 1), size=config.grids[-1], mode=config.enlarging)
        residual = residual - h
        if quantizer.phis:
            weight, bias = (p.detach().double() for p in quantizer.phis[scale].parameters())  # as many phis as scales
            residual = residual - config.phi_ratio * (F.conv2d(h, weight, bias, padding=1) - h)
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


def stepped(quantizer: Quantizer, features: Tensor) -> Tensor:
    """z + |c - z| times the direction to c, which carries no gradient."""
    target = quantizer.lookup(quantizer.encode(features)).detach().double()
    z = features.double()
    length = (target - z).square().sum(1, keepdim=True).sqrt()
    return (z + length * ((target - z) / length).detach()).float()


def bridged_excess(quantizer: Quantizer, features: Tensor, codes: Tensor) -> Tensor:
    """Distance above the nearest bridged code's."""
    assert isinstance(quantizer, VqBridgeQuantizer)
    return excess(torch.cdist(rows_of(features), quantizer.codebook.detach().double()), codes)


def each_scale(quantizer: Quantizer, features: Tensor) -> Tensor:
    """The sum over scales of the normalised area average of what the scales before leave, enlarged, and phi of it."""
    assert isinstance(quantizer, MultiscaleQuantizer)
    residual, total, config = features, torch.zeros(()), quantizer.config
    for scale, chosen in enumerate(quantizer.encode(features)):
        small = F.normalize(F.adaptive_avg_pool2d(residual, config.grids[scale]), dim=1)
        h = quantizer.books[scale].lookup(chosen) + small - small.detach()
        h = F.interpolate(h, size=config.grids[-1], mode=config.enlarging)
        if quantizer.phis:
            h = (1 - config.phi_ratio) * h + config.phi_ratio * quantizer.phis[scale](h)
        residual, total = residual - h.detach(), total + h
    return total


def bound64(quantizer: FsqQuantizer, features: Tensor) -> Tensor:
    """The bound in float64, as its two listings write it."""
    levels = torch.tensor(quantizer.config.levels, dtype=torch.float64)
    offset = torch.where(levels % 2 == 1, 0.0, 0.5)
    if quantizer.config.activation == "sigmoid":
        half = (levels - 1) / 2
        return (2 * torch.sigmoid(1.6 * rows_of(features) + 2 * torch.tan(offset / half)) - 1) * half - offset
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
    assert isinstance(quantizer, (LfqQuantizer, BsqQuantizer))
    rows, found = rows_of(features), rows_of(quantizer.lookup(codes))
    if isinstance(quantizer, BsqQuantizer):
        rows = F.normalize(rows, dim=1)
    if quantizer.config.bits > 12:  # too many corners to list: bit by bit
        scale = found.abs().amin()
        return (rows - found).square().sum(1) - ((rows.abs() - scale).square()).sum(1)
    table = rows_of(quantizer.lookup(every_code(quantizer)))
    return torch.linalg.vector_norm(rows - found, dim=1) - torch.cdist(rows, table).amin(1)


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
    source = vector_estimator(quantizer, features) if isinstance(quantizer, VectorQuantizer) else features
    z, q = rows_of(source), rows_of(quantizer.lookup(quantizer.encode(features)))
    a, b = F.normalize(z, dim=1), F.normalize(q, dim=1)
    r, eye = F.normalize(a + b, dim=1), torch.eye(z.shape[1], dtype=torch.float64)
    turn = eye - 2 * torch.einsum("ni,nj->nij", r, r) + 2 * torch.einsum("ni,nj->nij", b, a)
    assert torch.allclose(torch.einsum("nij,nkj->nik", turn, turn), eye.expand_as(turn), atol=1e-9)
    turn = turn * (q.norm(dim=1) / z.norm(dim=1))[:, None, None]
    assert torch.allclose(torch.einsum("nij,nj->ni", turn, z), q, atol=1e-9)
    shaped = turn.float().reshape(len(features), *features.shape[2:], *turn.shape[1:])
    return torch.einsum("b...ij,bj...->bi...", shaped, source)


def normalised_groups(quantizer: Quantizer, features: Tensor) -> Tensor:
    """Straight through the normalisation of each group."""
    assert isinstance(quantizer, ProductQuantizer)
    return torch.cat([F.normalize(part, dim=1) for part in features.chunk(len(quantizer.groups), 1)], 1)
