"""Nearest-code search: the codes of a float64 search, at about the price of one float32 matrix product.

A blocked float32 product scores groups of codes and finds, for each vector, the best group and the best score outside
of it. The codes of the best group are scored again in float64. A bound on the rounding of the product (Higham, Accuracy
and Stability of Numerical Algorithms, section 3.1) tells whether any code outside the group could do as well; the few
vectors where it could are searched in float64 throughout. So codes depend on neither blocks, nor batch, nor threads.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tokenizers_vq.quantizers.base import check_finite

Score = Literal["euclidean", "cosine", "dot"]

_FAN = 16  # groups a supergroup
_ROWS = 256  # vectors a product: wider ones are slower in MKL when D is small
_TILE = 1 << 17  # scores a product: they stay in the L2 cache
_OPERAND = 1 << 18  # numbers a block of vectors or codes: 1 MiB in float32
_LAUNCH = 16  # an accelerator gets so many times the rows and scores: there launches cost more than memory


def nearest_codes(x: Tensor, codebook: Tensor, *, score: Score = "euclidean") -> Tensor:
    """Index of the best code for each vector: `(N, D)`, `(K, D)` -> `(N,)` int64.

    `euclidean` takes the least distance, `dot` the largest dot product, `cosine` the largest dot product of normalised
    vectors (a zero vector stays zero). Among equal scores the lowest index wins. Carries no gradient; float32 inside,
    whatever the autocast, and float64 for float64. Memory beyond the arguments stays under 10 MB on a CPU at any size.
    On MPS, which has no float64, near-ties are settled in float32.

    Raises `ValueError` for an empty codebook, widths that differ, an unknown score, and (eager only) NaN or infinity.
    """
    if score not in ("euclidean", "cosine", "dot"):
        raise ValueError(f"score {score!r} is none of euclidean, cosine, dot")
    if x.ndim != 2 or codebook.ndim != 2 or x.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"search takes (N, D) and (K, D), got {tuple(x.shape)} and {tuple(codebook.shape)}: flatten to one width"
        )
    if codebook.numel() == 0:
        raise ValueError(f"codebook of shape {tuple(codebook.shape)} holds no code: give it at least one")
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        if torch.compiler.is_compiling() or torch.compiler.is_exporting():
            return _plain(x, codebook, score)
        # Unlike isfinite, aminmax needs no copy of the codebook.
        if not torch.isfinite(torch.stack(torch.aminmax(codebook))).all():
            raise ValueError("codebook holds NaN or infinite values: lower the learning rate or load a checkpoint")
        if len(x) == 0:
            return torch.empty(0, dtype=torch.int64, device=x.device)
        return _blocked(x, codebook, score)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64


def _unit(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.where(norm > 0, 1)


def _plain(x: Tensor, codebook: Tensor, score: Score) -> Tensor:
    """The same search for tracing: float64 throughout, blocks of codes only, no branch on values."""
    wide = _wide(x)
    width = x.shape[1]
    x, centre = x.to(wide), codebook.to(wide).mean(0)
    x = x - centre if score == "euclidean" else _unit(x) if score == "cosine" else x
    best = torch.full_like(x[:, 0], torch.inf)
    index = torch.zeros_like(best, dtype=torch.int64)
    for first in range(0, codebook.shape[0], 4096):
        codes = codebook[first : first + 4096].to(wide)
        codes = codes - centre if score == "euclidean" else _unit(codes) if score == "cosine" else codes
        norms = codes.square().sum(1)
        costs = -(x @ codes.T) + (norms / 2 if score == "euclidean" else 0)
        # Equal codes may come out of a product an ulp apart: what lies within its rounding counts as equal.
        slack = (width + 8) * torch.finfo(wide).eps * (x.square().sum(1) * norms.max()).sqrt()
        least = costs.amin(1)
        place = (costs <= (least + slack)[:, None]).to(torch.uint8).argmax(1)
        better = least < best - slack
        best, index = torch.where(better, least, best), torch.where(better, place + first, index)
    return index


def _blocked(x: Tensor, codebook: Tensor, score: Score) -> Tensor:
    """Blocks of vectors against blocks of codes, each block of codes prepared once for many vectors."""
    size, width = codebook.shape
    dtype = torch.promote_types(torch.promote_types(x.dtype, codebook.dtype), torch.float32)
    large = 1 if x.device.type == "cpu" else _LAUNCH
    group = 8 if width >= 128 else 16 if size < 1 << 16 else 64
    rows = min(_ROWS * large, max(1, _OPERAND * large // (width + 1)))
    span = rows * max(1, min(16, _OPERAND // (width + 1) // rows))
    tile = _FAN * group * max(1, _TILE * large // (_FAN * group * rows))
    room = max(tile, min(_OPERAND * large // (width + 1), _OPERAND * large * group // rows) // tile * tile)
    room = min(room, -(-size // (_FAN * group)) * _FAN * group)
    tile = min(tile, room)

    centre = codebook.mean(0, dtype=dtype) if score == "euclidean" else None
    codes = torch.empty(len(x), dtype=torch.int64, device=x.device)
    weights = torch.empty(room, width + 1, dtype=dtype, device=x.device)
    scores = torch.empty(tile * rows, dtype=dtype, device=x.device)
    minima = torch.empty(room // group * rows, dtype=dtype, device=x.device)
    for start in range(0, len(x), span):
        exact, vectors = _vectors(x[start : start + span], centre, score, dtype)
        found = [_Found.empty(len(part), dtype, x.device) for part in vectors.split(rows)]
        longest = torch.zeros((), dtype=dtype, device=x.device)
        for first in range(0, size, room):
            block = _weights(codebook[first : first + room], centre, score, weights, _FAN * group)
            longest = torch.maximum(longest, torch.linalg.vector_norm(block[: size - first, :width], dim=1).amax())
            for number, part in enumerate(vectors.split(rows)):
                best = minima[: len(block) // group * len(part)].view(-1, len(part))
                for at in range(0, len(block), tile):
                    some = block[at : at + tile]
                    out = scores[: len(some) * len(part)].view(-1, len(part))
                    torch.mm(some, part.T, out=out)
                    place = best[at // group : (at + len(some)) // group]
                    torch.amin(out.view(-1, group, len(part)), 1, out=place)
                found[number] = found[number].merge(best, first // group)
        joined = _Found(*(torch.cat(column) for column in zip(*found, strict=True)))
        codes[start : start + span] = _settle(exact, vectors, joined, codebook, centre, longest, group, score)
    return codes


class _Found(NamedTuple):
    """Of each vector: the best group's score and number, and the best score of any other group."""

    least: Tensor
    group: Tensor
    other: Tensor

    @classmethod
    def empty(cls, count: int, dtype: torch.dtype, device: torch.device) -> _Found:
        least = torch.full((count,), torch.inf, dtype=dtype, device=device)
        return cls(least, torch.zeros(count, dtype=torch.int64, device=device), least)

    def merge(self, minima: Tensor, first: int) -> _Found:
        """Joins the minima `(G, N)` of the groups from number `first`; an index costs less over supergroups."""
        groups = minima.view(-1, _FAN, minima.shape[1])
        outer = groups.amin(1).argmin(0)
        inside = groups.gather(0, outer.expand(1, _FAN, -1)).squeeze(0)
        least, inner = inside.min(0)
        groups.scatter_(0, outer.expand(1, _FAN, -1), torch.inf)
        other = torch.minimum(groups.amin((0, 1)), inside.scatter(0, inner[None], torch.inf).amin(0))
        other = torch.minimum(torch.minimum(self.other, other), torch.maximum(self.least, least))
        number = torch.where(least < self.least, outer * _FAN + inner + first, self.group)
        return _Found(torch.minimum(self.least, least), number, other)


def _vectors(x: Tensor, centre: Tensor | None, score: Score, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`(n, D)` -> the vectors in float64, and `(n, D + 1)` for the product, the last column 1."""
    check_finite(x)
    exact = x.to(_wide(x))
    exact = _unit(exact) if score == "cosine" else exact
    vectors = torch.ones(len(x), x.shape[1] + 1, dtype=dtype, device=x.device)
    vectors[:, :-1] = exact if centre is None else exact - centre
    return exact, vectors


def _weights(codes: Tensor, centre: Tensor | None, score: Score, out: Tensor, multiple: int) -> Tensor:
    """`(k, D)` -> rows `[-c, |c|^2 / 2]` or `[-c, 0]` of the product, and rows that never win up to a multiple."""
    count = len(codes)
    out = out[: -(-count // multiple) * multiple]
    out[count:].zero_()[:, -1] = torch.inf
    rows, last = out[:count, :-1], out[:count, -1]
    if centre is None:
        rows.copy_(_unit(codes.to(_wide(codes))) if score == "cosine" else codes).neg_()
        last.zero_()
    else:
        torch.sub(centre, codes.to(out.dtype), out=rows)
        last.copy_(torch.linalg.vector_norm(rows, dim=1).square_().mul_(0.5))
    return out


def _settle(
    exact: Tensor,
    vectors: Tensor,
    found: _Found,
    codebook: Tensor,
    centre: Tensor | None,
    longest: Tensor,
    group: int,
    score: Score,
) -> Tensor:
    """Best code of the best group; the whole codebook where the bound allows a code outside of it."""
    width = exact.shape[1]
    members = found.group[:, None] * group + torch.arange(group, device=exact.device)
    members.clamp_(max=len(codebook) - 1)
    costs, chosen = [], []
    part = max(1, _TILE // (group * width))
    for some, codes in zip(exact.split(part), members.split(part), strict=True):
        cost, place = _costs(some[:, None], codebook[codes], score).squeeze(1).min(1)
        costs.append(cost)
        chosen.append(codes.gather(1, place[:, None]).squeeze(1))
    cost, index = torch.cat(costs), torch.cat(chosen)

    # A better code c outside has |c| <= |x| + distance (about the centre), which bounds the product's error on it.
    tiny = torch.finfo(vectors.dtype).tiny
    length = torch.linalg.vector_norm(exact, dim=1)
    reach = longest.to(exact.dtype) + (width * tiny) ** 0.5  # squares below tiny are lost from `longest`
    if centre is not None:
        length = torch.linalg.vector_norm(exact - centre, dim=1)
        reach = torch.minimum(reach, length + cost)
        cost = (cost - length) * (cost + length) / 2
    error = (width + 8) * _roundoff(vectors) * (length * reach + (reach * reach if centre is not None else 0))
    error += (width + 8) * torch.finfo(exact.dtype).eps * cost.abs()
    error += (width + 8) * tiny * (1 + length + reach)
    # Negated, so that an overflow (NaN) counts as doubt.
    doubt = (~(found.other > cost + error)).nonzero().squeeze(1)
    for rows in doubt.split(64) if len(doubt) else ():
        index[rows] = _scan(exact[rows], codebook, score)
    return index


def _scan(exact: Tensor, codebook: Tensor, score: Score) -> Tensor:
    """Float64 search of a few vectors."""
    best = torch.full_like(exact[:, 0], torch.inf)
    index = torch.zeros_like(best, dtype=torch.int64)
    room = max(1, _TILE // (exact.shape[1] * (1 if score == "euclidean" else len(exact))))
    room = min(room, _TILE // len(exact))
    for first in range(0, len(codebook), room):
        cost, place = _costs(exact, codebook[first : first + room], score).min(1)
        better = cost < best
        best, index = torch.where(better, cost, best), torch.where(better, place + first, index)
    return index


def _costs(exact: Tensor, codes: Tensor, score: Score) -> Tensor:
    """`(..., n, D)`, `(..., k, D)` -> `(..., n, k)`: distances, or dot products negated.

    Each pair is computed by itself, not as part of a matrix product, so that equal codes tie exactly.
    """
    codes = codes.to(exact.dtype)
    if score == "euclidean":
        return torch.cdist(exact, codes, compute_mode="donot_use_mm_for_euclid_dist")
    codes = _unit(codes) if score == "cosine" else codes
    return (exact[..., :, None, :] * codes[..., None, :, :]).sum(-1).neg()


def _roundoff(x: Tensor) -> float:
    """Unit roundoff of a matrix product, where the user may have allowed TF32 or bf16 inside."""
    reduced = x.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return 2.0**-8 if reduced else torch.finfo(x.dtype).eps / 2
