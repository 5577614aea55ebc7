"""The search on a CPU: blocks of vectors against blocks of codes, as large as the caches take.

The product's scores are looked at by groups of codes: of each vector the best group, and the best score outside of it.
The codes of the best group are scored again in float64; the product's bound says whether a code outside could do as
well, and the few vectors where it could are searched in float64 throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tokenizers_vq.quantizers.scores import Score, as_rows, as_weights, costs_of, product_error, widened

_FAN = 16  # groups a supergroup
_ROWS = 256  # vectors a product: wider ones are slower in MKL when D is small
_TILE = 1 << 17  # scores a product: they stay in the L2 cache
_OPERAND = 1 << 18  # numbers a block of vectors or codes: 1 MiB in float32
_DOUBT = -1  # stands for a code until the scan


class _Plan(NamedTuple):
    """Sizes of the blocks."""

    group: int
    """codes of which the product finds the best together"""
    rows: int
    """vectors a product"""
    span: int
    """vectors for which a block of codes is prepared once"""
    unit: int
    """codes of a supergroup, of which blocks are multiples"""
    room: int
    """codes of a block"""
    tile: int
    """codes a product"""
    chunk: int
    """vectors whose groups are scored in float64 at once"""

    @classmethod
    def of(cls, size: int, width: int) -> _Plan:
        """For `size` codes `width` wide."""
        group = 1 if width >= 128 else 16 if size < 1 << 16 else 64
        rows = min(_ROWS, max(1, _OPERAND // (width + 1)))
        span = rows * max(1, min(16, 2 * _OPERAND // (width + 1) // rows))
        unit = _FAN * group
        room = max(1, min(2 * _OPERAND // (width + 1), _OPERAND * group // rows) // unit) * unit
        room = min(room, -(-size // unit) * unit)
        tile = min(unit * max(1, _TILE // (unit * rows)), room)
        return cls(group, rows, span, unit, room, tile, max(1, _TILE // (group * width)))


def blocked(x: Tensor, codebook: Tensor, score: Score) -> Tensor:
    """`(N, D)`, `(K, D)` -> int64 `(N,)`; each block of codes is prepared once for many vectors."""
    sweep = _Sweep(x, codebook, score)
    codes = torch.empty(len(x), dtype=torch.int64, device=x.device)
    for start in range(0, len(x), sweep.plan.span):
        part = x[start : start + sweep.plan.span]
        codes[start : start + len(part)] = sweep.settled(part)
    for start in range(0, len(x), 1 << 16):
        doubt = (codes[start : start + (1 << 16)] == _DOUBT).nonzero().squeeze(1) + start
        for few in doubt.split(64) if len(doubt) else ():
            codes[few] = _scan(x[few], codebook, score)
    return codes


class _Sweep:
    """The codebook, the plan and the buffers of one search."""

    def __init__(self, x: Tensor, codebook: Tensor, score: Score) -> None:
        size, width = codebook.shape
        self.codebook, self.score = codebook, score
        self.dtype = torch.promote_types(torch.promote_types(x.dtype, codebook.dtype), torch.float32)
        self.plan = plan = _Plan.of(size, width)
        self.centre = codebook.mean(0, dtype=self.dtype) if score == "euclidean" else None
        self.weights = torch.empty(plan.room, width + 1, dtype=self.dtype, device=x.device)
        self.scores = torch.empty(plan.tile * plan.rows, dtype=self.dtype, device=x.device)
        self.minima = torch.empty(plan.room // plan.group * plan.rows, dtype=self.dtype, device=x.device)

    def settled(self, x: Tensor) -> Tensor:
        """Codes of one span of vectors `(n, D)`, `_DOUBT` where the bound does not settle them."""
        plan, width = self.plan, x.shape[1]
        vectors = [as_rows(part, self.centre, self.score, self.dtype) for part in x.split(plan.rows)]
        found, longest = self._found(vectors)
        unsure = torch.ones_like(found.group, dtype=torch.bool)
        if plan.group == 1:  # the float32 score of the best code by itself settles most vectors
            length = torch.cat([torch.linalg.vector_norm(part[:, :-1], dim=1) for part in vectors])
            bound = product_error(length, longest, width, self.dtype, self.score)
            unsure = ~(found.other > found.least + 2 * bound)
        codes, rest = found.group, unsure.nonzero().squeeze(1)
        if plan.group == 1 and len(rest) <= plan.span // 64:  # so few that the one scan at the end is cheaper
            codes[rest] = _DOUBT
            return codes
        best = found.group.clone()
        for some in rest.split(plan.chunk) if len(rest) else ():
            those = _Found(found.least[some], best[some], found.other[some])
            codes[some] = self._settle(x[some], those, longest)
        return codes

    def _found(self, vectors: Sequence[Tensor]) -> tuple[_Found, Tensor]:
        """Best groups of all vectors, rows of products, and the length of the longest code."""
        found = [_Found.empty(part) for part in vectors]
        longest = torch.zeros((), dtype=self.dtype, device=self.codebook.device)
        for first, block, norms in self._blocks():
            longest = torch.maximum(longest, norms.amax())
            for number, part in enumerate(vectors):
                found[number] = found[number].merge(self._minima(block, part), first // self.plan.group)
        return _Found(*(torch.cat(column) for column in zip(*found, strict=True))), longest

    def _blocks(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Blocks of codes: the number of the first, the weights, the norms; in one buffer, one after the other."""
        for first in range(0, len(self.codebook), self.plan.room):
            codes = self.codebook[first : first + self.plan.room]
            yield first, *as_weights(codes, self.centre, self.score, self.weights, self.plan.unit)

    def _minima(self, block: Tensor, part: Tensor) -> Tensor:
        """Weights of k codes, rows of n vectors -> the least score of each group `(k / group, n)`."""
        group, count = self.plan.group, len(part)
        best = self.minima[: len(block) // group * count].view(-1, count)
        for some, place in zip(block.split(self.plan.tile), best.split(self.plan.tile // group), strict=True):
            out = place if group == 1 else self.scores[: len(some) * count].view(-1, count)
            torch.mm(some, part.T, out=out)
            if group > 1:
                torch.amin(out.view(-1, group, count), 1, out=place)
        return best

    def _settle(self, x: Tensor, found: _Found, longest: Tensor) -> Tensor:
        """Best code of the best group; of the whole codebook where the bound allows a better one outside the group."""
        width = x.shape[1]
        exact = widened(x, self.score)
        members = found.group[:, None] * self.plan.group + torch.arange(self.plan.group, device=x.device)
        members.clamp_(max=len(self.codebook) - 1)
        cost, place = costs_of(exact[:, None], self.codebook[members], self.score).squeeze(1).min(1)
        index = members.gather(1, place[:, None]).squeeze(1)

        # A better code c outside has |c| <= |x| + distance (about the centre), which bounds the product's error on it.
        length = torch.linalg.vector_norm(exact, dim=1)
        reach = longest.to(exact.dtype)
        if self.centre is not None:
            length = torch.linalg.vector_norm(exact - self.centre, dim=1)
            reach = torch.minimum(reach, length + cost)
            cost = (cost - length) * (cost + length) / 2
        error = product_error(length, reach, width, found.least.dtype, self.score)
        error += (width + 8) * torch.finfo(exact.dtype).eps * cost.abs()
        # Negated, so that an overflow (NaN) counts as doubt.
        return index.where(found.other > cost + error, _DOUBT)


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


def _scan(x: Tensor, codebook: Tensor, score: Score) -> Tensor:
    """Float64 search of a few vectors."""
    exact = widened(x, score)
    best = torch.full_like(exact[:, 0], torch.inf)
    index = torch.zeros_like(best, dtype=torch.int64)
    pairs = 1 if score == "euclidean" else len(x)
    room = max(1, min(_TILE // (x.shape[1] * pairs), _TILE // len(x)))
    for first in range(0, len(codebook), room):
        cost, place = costs_of(exact, codebook[first : first + room], score).min(1)
        better = cost < best
        best, index = torch.where(better, cost, best), torch.where(better, place + first, index)
    return index
