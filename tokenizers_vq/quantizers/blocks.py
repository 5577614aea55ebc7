"""The search on a CPU: blocks of vectors against blocks of codes, as large as the caches take.

The product's scores are lower bounds, each by the length of its own code (`scores.error_terms`). They are looked at by
groups of codes: of each vector the best group, and the best bound outside of it. A code that costs less than that bound
is the nearest; for the vectors where none does, all codes whose bounds allow it are scored again in float64. A code
that stands in the codebook before is left out, so that a book of few different codes is no slower than another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokenizers_vq.quantizers.scores import (
    Score,
    allows_reduced,
    as_rows,
    as_weights,
    costs_of,
    error_terms,
    widened,
)

_FAN = 16  # groups a supergroup
_ROWS = 256  # vectors a product: wider ones are slower in MKL when D is small
_TILE = 1 << 17  # scores a product: they stay in the L2 cache
_OPERAND = 1 << 18  # numbers a block of vectors or codes: 1 MiB in float32
_FEW = 128  # vectors: for fewer no code is looked for twice
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
        # Wide products take so long that scores may leave the cache: fewer and larger steps cost less.
        wide = group == 1
        rows = min(4 * _ROWS if wide else _ROWS, max(1, _OPERAND // width))
        span = rows * max(1, min(16, 2 * _OPERAND // (width + 2) // rows))
        unit = _FAN * group
        room = max(1, min(2 * _OPERAND // (width + 2), _OPERAND * (4 if wide else group) // rows) // unit) * unit
        room = min(room, -(-size // unit) * unit)
        tile = min(unit * max(1, _TILE // (unit * rows)), room)
        return cls(group, rows, span, unit, room, tile, max(1, _TILE // (group * width)))


def blocked(x: Tensor, codebook: Tensor, score: Score) -> Tensor:
    """`(N, D)`, `(K, D)` -> int64 `(N,)`; each block of codes is prepared once for many vectors."""
    sweep = _Sweep(x, codebook, score)
    codes = torch.full((len(x),), _DOUBT, dtype=torch.int64, device=x.device)
    if sweep.dtype != torch.float32 or not allows_reduced():  # else the bounds say nothing
        for start in range(0, len(x), sweep.plan.span):
            part = x[start : start + sweep.plan.span]
            codes[start : start + len(part)] = sweep.settled(part)
    for start in range(0, len(x), 1 << 16):
        doubt = _where(codes[start : start + (1 << 16)] == _DOUBT)[0] + start
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
        self.weights = torch.empty(plan.room, width + 2, dtype=self.dtype, device=x.device)
        self.scores = torch.empty(plan.tile * plan.rows, dtype=self.dtype, device=x.device)
        self.minima = torch.empty(plan.room // plan.group * plan.rows, dtype=self.dtype, device=x.device)
        self.norms = torch.empty(size, dtype=self.dtype, device=x.device)
        self.again = _again(codebook) if len(x) > _FEW else None
        self.ready: int | None = None  # number of the block that `weights` holds

    def settled(self, x: Tensor) -> Tensor:
        """Codes of one span of vectors `(n, D)`, `_DOUBT` where numbers overflow."""
        plan, rows = self.plan, self._rows(x)
        vectors = rows.split(plan.rows)
        if plan.room >= len(self.codebook) and plan.group == 1:  # all bounds of some vectors are at hand at once
            pairs = zip(x.split(plan.rows), vectors, strict=True)
            return torch.cat([self._settle(part, some, self._found([some]), self.minima) for part, some in pairs])
        return self._settle(x, rows, self._found(vectors), None)

    def _rows(self, x: Tensor) -> Tensor:
        """`(n, D)` -> `(n, D + 2)`, vectors, ones and lengths."""
        rows = torch.empty(len(x), x.shape[1] + 2, dtype=self.dtype, device=x.device)
        as_rows(x, self.centre, self.score, rows[:, :-1])
        torch.linalg.vector_norm(rows[:, :-2], dim=1, out=rows[:, -1])
        return rows

    def _found(self, vectors: Sequence[Tensor]) -> _Found:
        """Best groups of all vectors, rows of products."""
        found = [_Found.empty(part) for part in vectors]
        for first, block in self._blocks():
            for number, part in enumerate(vectors):
                found[number] = found[number].merge(self._minima(block, part), first // self.plan.group)
        return _Found(*(torch.cat(column) for column in zip(*found, strict=True)))

    def _blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Blocks of codes, the number of the first and the weights; in one buffer, one after the other."""
        width, plan = self.codebook.shape[1], self.plan
        for first in range(0, len(self.codebook), plan.room):
            codes = self.codebook[first : first + plan.room]
            count = len(codes)
            block = self.weights[: -(-count // plan.unit) * plan.unit]
            if self.ready != first:
                _, norms = as_weights(codes, self.centre, self.score, self.weights[:, :-1], plan.unit)
                self.norms[first : first + count] = norms
                steep, flat = error_terms(norms, width, self.dtype, self.score)
                block[:count, -1], block[count:, -1] = -steep, 0
                block[:count, -2] -= flat
                if self.again is not None:
                    block[:count, -2].masked_fill_(self.again[first : first + count], torch.inf)
                self.ready = first
            yield first, block

    def _minima(self, block: Tensor, part: Tensor) -> Tensor:
        """Weights of k codes, rows of n vectors -> the least bound of each group `(k / group, n)`."""
        group, count = self.plan.group, len(part)
        best = self.minima[: len(block) // group * count].view(-1, count)
        if group == 1:
            return torch.mm(block, part.T, out=best)
        for some, place in zip(block.split(self.plan.tile), best.split(self.plan.tile // group), strict=True):
            out = self.scores[: len(some) * count].view(-1, count)
            torch.mm(some, part.T, out=out)
            torch.amin(out.view(-1, group, count), 1, out=place)
        return best

    def _settle(self, x: Tensor, rows: Tensor, found: _Found, bounds: Tensor | None) -> Tensor:
        """Codes of vectors `(n, D)`, rows of products; `bounds`: those of all codes, where they are at hand."""
        length = rows[:, -1].double()
        codes, most = self._best(x, length, found)
        doubt = ~(found.other > most)
        longest = float(self.norms.numpy().max())
        if not float(length.numpy().max()) * longest + longest * longest < torch.finfo(self.dtype).max / 8:
            # Sums may overflow on the way, and a bound be any number.
            codes[~(length * longest + longest * longest < torch.finfo(self.dtype).max / 8)] = _DOUBT
            broken = ~torch.isfinite(x).all(1) | ~torch.isfinite(self.codebook).all()
            codes[broken] = 0  # a check has noted it
            doubt &= (codes != _DOUBT) & ~broken
        (rest,) = _where(doubt)
        if len(rest):
            near = _Near(x[rest], codes[rest], self.codebook, self.score)
            if bounds is not None:
                bounds = bounds[: len(self.codebook) * len(x)].view(-1, len(x))
                tile = max(1, _TILE // len(rest))
                for first in range(0, len(bounds), tile):
                    near.look(bounds[first : first + tile, rest], most[rest], first)
            else:
                self._look(near, rows[rest], most[rest])
            codes[rest] = near.codes
        return codes

    def _best(self, x: Tensor, length: Tensor, found: _Found) -> tuple[Tensor, Tensor]:
        """The best code of the best group, and in float64 the most that its score can be."""
        width = x.shape[1]
        if self.plan.group == 1:  # the bound by itself settles most vectors
            steep, flat = error_terms(self.norms[found.group], width, self.dtype, self.score)
            return found.group.clone(), found.least.double() + 2.01 * (length * steep + flat)
        codes, most = torch.empty_like(found.group), torch.empty_like(length)
        for start in range(0, len(x), self.plan.chunk):
            some = slice(start, start + self.plan.chunk)
            exact = widened(x[some], self.score)
            members = found.group[some, None] * self.plan.group + torch.arange(self.plan.group, device=x.device)
            members.clamp_(max=len(self.codebook) - 1)
            cost, place = costs_of(exact[:, None], self.codebook[members], self.score).squeeze(1).min(1)
            codes[some] = members.gather(1, place[:, None]).squeeze(1)
            if self.centre is not None:
                about = torch.linalg.vector_norm(exact - self.centre, dim=1)
                cost = (cost - about) * (cost + about) / 2
                scale = 2 * (cost.abs() + about.square())
            else:
                scale = length[some] * self.norms.amax()
            most[some] = cost + (width + 8) * torch.finfo(exact.dtype).eps * scale
        return codes, most

    def _look(self, near: _Near, rows: Tensor, most: Tensor) -> None:
        """Shows `near` the bounds of all codes, which are computed once more."""
        tile, count = self.plan.tile, self.plan.rows
        for first, block in self._blocks():
            size = min(self.plan.room, len(self.codebook) - first)
            for start in range(0, len(rows), count):
                part = slice(start, start + count)
                for code, some in zip(range(0, size, tile), block[:size].split(tile), strict=True):
                    out = self.scores[: len(some) * len(rows[part])].view(len(some), -1)
                    near.look(torch.mm(some, rows[part].T, out=out), most[part], first + code, start)


class _Near:
    """Vectors in doubt: of the codes whose bounds allow it the nearest, by cost in float64; the lowest of equals."""

    def __init__(self, x: Tensor, codes: Tensor, codebook: Tensor, score: Score) -> None:
        self.x, self.codes, self.codebook, self.score = x, codes, codebook, score
        self.cost = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)

    def look(self, bounds: Tensor, most: Tensor, first: int, start: int = 0) -> None:
        """Bounds `(k, n)` of codes from number `first` on and of vectors from number `start` on, which cost at `most`.

        Written by `~ >`, so that NaN is looked at.
        """
        room = max(1, (1 << 17) // self.x.shape[1])
        above = most.to(bounds.dtype)
        above = above.nextafter(torch.full_like(above, torch.inf))
        code, vector = _where(~(bounds > above))
        if not len(code):
            return
        for c, v in zip((code + first).split(room), (vector + start).split(room), strict=True):
            exact = widened(self.x[v], self.score)[:, None]
            cost = costs_of(exact, self.codebook[c][:, None], self.score)[:, 0, 0]
            least = self.cost.scatter_reduce(0, v, cost, "amin")
            winner = torch.where(cost == least[v], c, len(self.codebook))
            lowest = torch.full_like(self.codes, len(self.codebook)).scatter_reduce_(0, v, winner, "amin")
            self.codes = torch.where(least < self.cost, lowest, self.codes)  # codes come in order: the first of equals
            self.cost = least


def _where(mask: Tensor) -> list[Tensor]:
    """Indices where a mask holds, one tensor a dimension. By NumPy: these lie on the CPU, and nothing is waited for."""
    return [torch.from_numpy(index) for index in np.nonzero(mask.numpy())]


def _again(codebook: Tensor) -> Tensor | None:
    """Bool `(K,)`, True for codes that stand in the codebook before; None where there are hardly any.

    Equal codes have equal lengths, so that a sort of those finds them; in one of random codes it finds nothing.
    """
    norms = torch.linalg.vector_norm(codebook, dim=1, dtype=torch.promote_types(codebook.dtype, torch.float32)).numpy()
    ordered = np.sort(norms)
    if np.count_nonzero(ordered[1:] == ordered[:-1]) < len(norms) // 8:
        return None
    order = torch.from_numpy(np.argsort(norms, kind="stable"))
    again = torch.zeros(len(codebook), dtype=torch.bool)
    room = max(2, (1 << 17) // codebook.shape[1])
    for start in range(0, len(order) - 1, room - 1):
        some = order[start : start + room]
        rows = codebook[some]
        again[some[1:]] = (rows[1:] == rows[:-1]).all(1)
    return again


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
