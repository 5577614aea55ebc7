"""Nearest-code search: the codes of a float64 search, at about the price of one float32 matrix product.

A blocked float32 product scores groups of codes and finds, for each vector, the best group and the best score outside
of it. The codes of the best group are scored again in float64. A bound on the rounding of the product (Higham, Accuracy
and Stability of Numerical Algorithms, section 3.1) tells whether any code outside the group could do as well; the few
vectors where it could are searched in float64 throughout. So codes depend on neither blocks, nor batch, nor threads.

On an accelerator launches cost more than memory: one product of many vectors with the whole codebook, and float64 only
for those codes that the same bound leaves in doubt.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tokenizers_vq.devices import full_float32

Score = Literal["euclidean", "cosine", "dot"]

_FAN = 16  # groups a supergroup
_ROWS = 256  # vectors a product: wider ones are slower in MKL when D is small
_TILE = 1 << 17  # scores a product: they stay in the L2 cache
_OPERAND = 1 << 18  # numbers a block of vectors or codes: 1 MiB in float32
_DOUBT = -1  # stands for a code until the scan
_LAUNCH = 1 << 25  # scores a product on an accelerator, 128 MiB in float32
_PAIRS = 1 << 21  # float64 numbers at a time where pairs are scored by themselves there, 16 MiB


def nearest_codes(x: Tensor, codebook: Tensor, *, score: Score = "euclidean") -> Tensor:
    """Index of the best code for each vector: `(N, D)`, `(K, D)` -> `(N,)` int64.

    `euclidean` takes the least distance, `dot` the largest dot product, `cosine` the largest dot product of normalised
    vectors (a zero vector stays zero). Among equal scores the lowest index wins. Carries no gradient; float32 inside,
    whatever the autocast, and float64 for float64. Memory beyond the arguments stays under 10 MB on a CPU at any size,
    and under 400 MB, three numbers a vector aside, on an accelerator. On MPS, which has no float64, near-ties are
    settled in float32. Where distances are equal within float64's rounding, CPU and accelerator may differ.

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
        check_finite(codebook, "codebook holds")
        if len(x) == 0:
            return torch.empty(0, dtype=torch.int64, device=x.device)
        check_finite(x, "features to quantize hold")
        return (_blocked if x.device.type == "cpu" else _launched)(x, codebook, score)


def check_finite(x: Tensor, what: str) -> None:
    """Raises `ValueError`, its line headed by `what`, where `x` (any shape but an empty one) has NaN or infinity."""
    # Unlike isfinite, aminmax makes no copy.
    if not torch.isfinite(torch.stack(torch.aminmax(x))).all():
        raise ValueError(f"{what} NaN or infinite values: lower the learning rate, clip gradients, or train in fp32")


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
    group = 1 if width >= 128 else 16 if size < 1 << 16 else 64
    rows = min(_ROWS, max(1, _OPERAND // (width + 1)))
    span = rows * max(1, min(16, 2 * _OPERAND // (width + 1) // rows))
    unit = _FAN * group
    tile = unit * max(1, _TILE // (unit * rows))
    room = max(1, min(2 * _OPERAND // (width + 1), _OPERAND * group // rows) // unit) * unit
    room = min(room, -(-size // unit) * unit)
    tile = min(tile, room)
    chunk = max(1, _TILE // (group * width))

    centre = codebook.mean(0, dtype=dtype) if score == "euclidean" else None
    codes = torch.empty(len(x), dtype=torch.int64, device=x.device)
    weights = torch.empty(room, width + 1, dtype=dtype, device=x.device)
    scores = torch.empty(tile * rows, dtype=dtype, device=x.device)
    minima = torch.empty(room // group * rows, dtype=dtype, device=x.device)
    for start in range(0, len(x), span):
        vectors = [_vectors(part, centre, score, dtype) for part in x[start : start + span].split(rows)]
        found = [_Found.empty(part) for part in vectors]
        longest = torch.zeros((), dtype=dtype, device=x.device)
        for first in range(0, size, room):
            block, norms = _weights(codebook[first : first + room], centre, score, weights, unit)
            longest = torch.maximum(longest, norms.amax())
            for number, part in enumerate(vectors):
                count = len(part)
                best = minima[: len(block) // group * count].view(-1, count)
                for some, place in zip(block.split(tile), best.split(tile // group), strict=True):
                    out = place if group == 1 else scores[: len(some) * count].view(-1, count)
                    torch.mm(some, part.T, out=out)
                    if group > 1:
                        torch.amin(out.view(-1, group, count), 1, out=place)
                found[number] = found[number].merge(best, first // group)
        joined = _Found(*(torch.cat(column) for column in zip(*found, strict=True)))
        unsure = torch.ones_like(joined.group, dtype=torch.bool)
        if group == 1:  # the float32 score of the best code by itself settles most vectors
            length = torch.cat([torch.linalg.vector_norm(part[:, :-1], dim=1) for part in vectors])
            unsure = ~(joined.other > joined.least + 2 * _error(length, longest, width, dtype, score))
        codes[start : start + span] = joined.group
        rest = unsure.nonzero().squeeze(1)
        if group == 1 and len(rest) <= span // 64:  # so few that the one scan at the end is cheaper
            codes[start + rest] = _DOUBT
            rest = rest[:0]
        for some in rest.split(chunk) if len(rest) else ():
            those = _Found(*(column[some] for column in joined))
            codes[start + some] = _settle(x[start + some], those, codebook, centre, longest, group, score)
    for start in range(0, len(x), 1 << 16):
        doubt = (codes[start : start + (1 << 16)] == _DOUBT).nonzero().squeeze(1) + start
        for few in doubt.split(64) if len(doubt) else ():
            codes[few] = _scan(x[few], codebook, score)
    return codes


class _Found(NamedTuple):
    """Of each vector: the best group's score and number, and the best score of any other group."""

    least: Tensor
    group: Tensor
    other: Tensor

    @classmethod
    def empty(cls, vectors: Tensor) -> _Found:
        least = torch.full_like(vectors[:, 0], torch.inf)
        return cls(least, torch.zeros_like(least, dtype=torch.int64), least)

    def merge(self, minima: Tensor, first: int) -> _Found:
        """Joins the minima `(G, N)` of the groups from number `first`; an index costs less over supergroups."""
        groups = minima.view(-1, _FAN, minima.shape[1])
        above = groups.amin(1)
        least = above.amin(0)
        outer = _first(above, least)
        inside = groups.gather(0, outer.expand(1, _FAN, -1)).squeeze(0)
        inner = _first(inside, least)
        above.scatter_(0, outer[None], torch.inf)
        inside.scatter_(0, inner[None], torch.inf)
        other = torch.minimum(above.amin(0), inside.amin(0))
        other = torch.minimum(torch.minimum(self.other, other), torch.maximum(self.least, least))
        number = torch.where(least < self.least, outer * _FAN + inner + first, self.group)
        return _Found(torch.minimum(self.least, least), number, other)


def _first(values: Tensor, least: Tensor) -> Tensor:
    """First row of `(G, N)` that holds the least; several times faster than argmin over the first dimension."""
    last = len(values) - 1
    steps = torch.arange(len(values), dtype=values.dtype, device=values.device)
    return torch.where(values == least, steps[:, None], last).amin(0).long()


def _vectors(x: Tensor, centre: Tensor | None, score: Score, dtype: torch.dtype) -> Tensor:
    """`(n, D)` -> `(n, D + 1)` for the product, the last column 1."""
    vectors = torch.empty(len(x), x.shape[1] + 1, dtype=dtype, device=x.device)
    vectors[:, -1] = 1
    if centre is not None:
        torch.sub(x.to(dtype), centre, out=vectors[:, :-1])
    else:
        vectors[:, :-1] = _exact(x, score) if score == "cosine" else x
    return vectors


def _weights(codes: Tensor, centre: Tensor | None, score: Score, out: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    """`(k, D)` -> rows `[-c, |c|^2 / 2]` or `[-c, 0]`, up to a multiple with rows that never win; and norms `|c|`."""
    count = len(codes)
    out = out[: -(-count // multiple) * multiple]
    out[count:].zero_()[:, -1] = torch.inf
    rows, last = out[:count, :-1], out[:count, -1]
    if centre is not None:
        torch.sub(centre, codes.to(out.dtype), out=rows)
    else:
        torch.neg((_exact(codes, score) if score == "cosine" else codes).to(out.dtype), out=rows)
    norms = torch.linalg.vector_norm(rows, dim=1)
    last.copy_(norms.square().mul_(0.5) if score == "euclidean" else torch.zeros_like(norms))
    return out, norms


def _settle(
    x: Tensor, found: _Found, codebook: Tensor, centre: Tensor | None, longest: Tensor, group: int, score: Score
) -> Tensor:
    """Best code of the best group; of the whole codebook where the bound allows a better one outside the group."""
    width = x.shape[1]
    exact = _exact(x, score)
    members = found.group[:, None] * group + torch.arange(group, device=x.device)
    members.clamp_(max=len(codebook) - 1)
    cost, place = _costs(exact[:, None], codebook[members], score).squeeze(1).min(1)
    index = members.gather(1, place[:, None]).squeeze(1)

    # A better code c outside has |c| <= |x| + distance (about the centre), which bounds the product's error on it.
    length = torch.linalg.vector_norm(exact, dim=1)
    reach = longest.to(exact.dtype)
    if centre is not None:
        length = torch.linalg.vector_norm(exact - centre, dim=1)
        reach = torch.minimum(reach, length + cost)
        cost = (cost - length) * (cost + length) / 2
    error = _error(length, reach, width, found.least.dtype, score)
    error += (width + 8) * torch.finfo(exact.dtype).eps * cost.abs()
    # Negated, so that an overflow (NaN) counts as doubt.
    return index.where(found.other > cost + error, _DOUBT)


def _scan(x: Tensor, codebook: Tensor, score: Score) -> Tensor:
    """Float64 search of a few vectors."""
    exact = _exact(x, score)
    best = torch.full_like(exact[:, 0], torch.inf)
    index = torch.zeros_like(best, dtype=torch.int64)
    pairs = 1 if score == "euclidean" else len(x)
    room = max(1, min(_TILE // (x.shape[1] * pairs), _TILE // len(x)))
    for first in range(0, len(codebook), room):
        cost, place = _costs(exact, codebook[first : first + room], score).min(1)
        better = cost < best
        best, index = torch.where(better, cost, best), torch.where(better, place + first, index)
    return index


def _launched(x: Tensor, codebook: Tensor, score: Score) -> Tensor:
    """The search in few and large steps, of which the second sees the vectors that the first leaves in doubt."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, codebook.dtype), torch.float32)
    size, width = codebook.shape
    room = max(1, min(size, _LAUNCH >> 9, _LAUNCH // (4 * width + 4)))
    rows = max(1, _LAUNCH // max(room, 4 * width + 4))
    centre = codebook.mean(0, dtype=dtype) if score == "euclidean" else None
    codes = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    least, other = torch.full((2, len(x)), torch.inf, dtype=dtype, device=x.device)
    longest, length = torch.zeros((), dtype=dtype, device=x.device), torch.zeros_like(least)
    with full_float32(x.device):  # with TF32, which the user may have allowed, nearly every code stays in doubt
        for first in range(0, size, room):
            block, norms = _code_block(codebook[first : first + room], centre, score, dtype)
            longest = torch.maximum(longest, norms.amax())
            for start in range(0, len(x), rows):
                part = slice(start, start + rows)
                vectors = _vectors(x[part], centre, score, dtype)
                length[part] = torch.linalg.vector_norm(vectors[:, :-1], dim=1)
                scores = vectors @ block
                best, place = scores.min(1)
                second = scores.scatter_(1, place[:, None], torch.inf).amin(1)
                del scores
                other[part] = torch.minimum(torch.minimum(other[part], second), torch.maximum(least[part], best))
                codes[part] = torch.where(best < least[part], place + first, codes[part])
                least[part] = torch.minimum(least[part], best)
        clear = other > least + 2 * _error(length, longest, width, dtype, score, reduced=False)
        doubt = (~clear).nonzero().squeeze(1)  # an overflow (NaN) too
        for few in doubt.split(-(-rows // 8)):
            codes[few] = _among_near(x[few], codebook, centre, score, dtype, room)
    return codes


def _code_block(codes: Tensor, centre: Tensor | None, score: Score, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`(k, D)` -> what vectors are multiplied by, `(D + 1, k)`, and norms `(k,)`."""
    out = torch.empty(len(codes), codes.shape[1] + 1, dtype=dtype, device=codes.device)
    weights, norms = _weights(codes, centre, score, out, 1)
    return weights.T, norms


def _among_near(
    x: Tensor, codebook: Tensor, centre: Tensor | None, score: Score, dtype: torch.dtype, room: int
) -> Tensor:
    """Codes of a few vectors: all that the products do not exclude, each by its own norm, are scored in float64."""
    size, width = codebook.shape
    vectors = _vectors(x, centre, score, dtype)
    length = torch.linalg.vector_norm(vectors[:, :-1], dim=1)[:, None]
    bound = torch.full_like(length, torch.inf)
    best = torch.full((len(x),), torch.inf, dtype=_wide(x), device=x.device)
    index = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for first in range(0, size, room):
        block, norms = _code_block(codebook[first : first + room], centre, score, dtype)
        scores, error = vectors @ block, _error(length, norms, width, dtype, score, reduced=False)
        bound = torch.minimum(bound, (scores + error).amin(1, keepdim=True))
        row, code = (~(scores - error > bound)).nonzero(as_tuple=True)
        part = max(1, _PAIRS // width)
        for r, c in zip(row.split(part), (code + first).split(part), strict=True):
            cost = _pair_costs(x[r], codebook[c], score)
            least = best.scatter_reduce(0, r, cost, "amin")
            winner = torch.where(cost == least[r], c, size)
            lowest = torch.full_like(index, size).scatter_reduce_(0, r, winner, "amin")
            index, best = torch.where(least < best, lowest, index), least
    return index


def _pair_costs(x: Tensor, codes: Tensor, score: Score) -> Tensor:
    """`(P, D)`, `(P, D)` -> `(P,)` in float64: squared distances, or dot products negated."""
    x, codes = x.to(_wide(x)), codes.to(_wide(x))
    if score == "euclidean":
        return _sum((x - codes).square())
    if score == "cosine":
        lengths = [_sum(part.square()).sqrt()[:, None] for part in (x, codes)]
        x, codes = (part / length.where(length > 0, 1) for part, length in zip((x, codes), lengths, strict=True))
    return -_sum(x * codes)


def _sum(terms: Tensor) -> Tensor:
    """`(P, D)` -> `(P,)`, by halves: in one order whatever P, so that equal codes tie exactly. A GPU's sum is not."""
    while terms.shape[1] > 1:
        half = -(-terms.shape[1] // 2)
        folded = terms[:, :half].clone()
        folded[:, : terms.shape[1] - half] += terms[:, half:]
        terms = folded
    return terms[:, 0]


def _exact(x: Tensor, score: Score) -> Tensor:
    wide = x.to(_wide(x))
    return _unit(wide) if score == "cosine" else wide


def _costs(exact: Tensor, codes: Tensor, score: Score) -> Tensor:
    """`(..., n, D)`, `(..., k, D)` -> `(..., n, k)`: distances, or dot products negated.

    Each pair is computed by itself, not as part of a matrix product, so that equal codes tie exactly.
    """
    codes = _exact(codes, score)
    if score == "euclidean":
        return torch.cdist(exact, codes, compute_mode="donot_use_mm_for_euclid_dist")
    return (exact[..., :, None, :] * codes[..., None, :, :]).sum(-1).neg()


def _error(
    length: Tensor, reach: Tensor, width: int, dtype: torch.dtype, score: Score, *, reduced: bool | None = None
) -> Tensor:
    """Most that the product's score of a code no longer than `reach` is off, for vectors of `length`.

    `reduced`: whether the product may be one in TF32 or bfloat16; unset, what the user has allowed on the CPU.
    """
    reduced = _reduced() if reduced is None else reduced
    unit = 2.0**-8 if reduced and dtype == torch.float32 else torch.finfo(dtype).eps / 2
    tiny = torch.finfo(dtype).tiny
    reach = reach + (width * tiny) ** 0.5  # squares below tiny are lost from norms
    size = length * reach + reach * reach if score == "euclidean" else length * reach
    return (width + 8) * (unit * size + tiny * (1 + length + reach))


def _reduced() -> bool:
    try:
        allowed = torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # it was said in torch's newer way, and is no longer read in the older
        return True
    newer = getattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision", "none")
    return allowed or newer not in ("none", "ieee")
