"""Speculative Jacobi decoding: several codes of an autoregressive network in one pass, drawn as one by one.

Codes ahead are drafts. Every pass reads a window of them at once, and each draft x, which was drawn with probability
q(x), is kept with probability min(1, p(x) / q(x)), p being what the network says now, or else drawn anew in proportion
to max(0, p - q). So it is distributed as p whatever q was (speculative sampling, arXiv 2211.17192), and as p is right
where all codes before are right, a code is final with the first one that is drawn anew (arXiv 2410.01699, algorithm 1).
The drafts after it go through the same step, which draws them from the p of this pass and keeps most of them
(adaptive continuation, arXiv 2603.18599; a maximal coupling, without which drafts would change at every pass).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from prior.networks.base import Noise
from prior.sampling import Sampler, pick, probabilities

Look = Callable[[Tensor, Tensor, int], Tensor]
"""`look(codes, first, count)`: codes int64 `(B, N)` and places `(B,)` -> guided logits `(B, count, K)` of the `count`
places from `first` on in each row, anything beyond the last; codes before `first` have been looked at"""


class Speculated(NamedTuple):
    """What speculative decoding gives."""

    codes: Tensor
    """int64 `(B, N)`"""
    passes: Tensor
    """int64 `(B,)`: passes of the network until a row was done"""
    drawn: Tensor
    """int64 `(B,)`: codes that were drawn, not given"""


class _Window(NamedTuple):
    """Where rows stand: their codes and drafts, the first that is not final, and the drafts' distributions."""

    codes: Tensor
    """int64 `(B, N + W)`, the last W columns of no use"""
    first: Tensor
    """int64 `(B,)`"""
    drafted: Tensor | None
    """float32 `(B, W, K)`: what the drafts at `first, first + 1, ...` were drawn from; None: any possible code"""


def speculate(known: Tensor, look: Look, sampler: Sampler, window: int, noise: Noise, sizes: Tensor) -> Speculated:
    """Draw the codes that are -1 in `known` `(B, N)` in passes over `window` places.

    `sizes`: int64 `(N,)`, how many codes there are at each place, the first of K. Rows go on each by itself, and a
    code's randomness is that of its place and of the pass, so that a row does not depend on the batch.
    """
    length = known.shape[1]
    given = F.pad(known >= 0, (0, window), value=True)
    first = given[:, :length].long().cumprod(dim=1).sum(dim=1)
    drawn, passes = (~given).sum(dim=1), torch.zeros_like(first)

    def at(draw: int) -> Callable[[Tensor], Tensor]:
        return lambda where: F.pad(noise(draw, length), (0, window)).gather(1, where)

    # Drafts before the first pass: any possible code.
    anything = (noise(0, length) * sizes).long()
    codes = F.pad(torch.where(known >= 0, known, anything), (0, window))
    now = _Window(codes, first, None)
    for step in range(length):
        if bool((now.first >= length).all()):
            break
        passes += now.first < length
        now = _verify(now, look, given, sampler, sizes, [at(3 * step + number) for number in (1, 2, 3)])
    return Speculated(now.codes[:, :length], passes, drawn)


def _verify(
    now: _Window, look: Look, given: Tensor, sampler: Sampler, sizes: Tensor, uniform: list[Callable[[Tensor], Tensor]]
) -> _Window:
    """One pass."""
    (rows, padded), length = given.shape, len(sizes)
    window = padded - length
    ahead = torch.arange(window, device=given.device)
    where = now.first[:, None] + ahead
    told = probabilities(look(now.codes[:, :length], now.first, window), sampler)
    size = told.shape[-1]
    before = _evenly(where, sizes, size) if now.drafted is None else now.drafted
    drafts, fixed = now.codes.gather(1, where), given.gather(1, where)

    def of(shares: Tensor) -> Tensor:
        return shares.gather(2, drafts[..., None])[..., 0]

    kept = (uniform[0](where) * of(before) < of(told)) | fixed
    anew = pick((told - before).clamp(min=0).view(-1, size), uniform[1](where).flatten()).view(rows, window)
    codes = now.codes.scatter(1, where, torch.where(kept, drafts, anew))
    # Final are those kept up to the first that was drawn anew, and that one.
    final = (kept.long().cumprod(dim=1).sum(dim=1) + 1).clamp(max=window)
    first = (now.first + final).clamp(max=length)
    # The window moves on; what enters it is drafted from the distribution of the last place.
    moved = (first - now.first)[:, None] + ahead
    drafted = told.gather(1, moved.clamp(max=window - 1)[..., None].expand(-1, -1, size))
    where = first[:, None] + ahead
    if bool((sizes != sizes[0]).any()):  # or, where not all places take the same codes, from all that it takes
        drafted = torch.where((moved < window)[..., None], drafted, _evenly(where, sizes, size))
    fresh = pick(drafted.view(-1, size), uniform[2](where).flatten()).view(rows, window)
    old = codes.gather(1, where)
    codes = codes.scatter(1, where, torch.where((moved < window) | given.gather(1, where), old, fresh))
    return _Window(codes, first, drafted)


def _evenly(where: Tensor, sizes: Tensor, size: int) -> Tensor:
    """float32 `(B, W, K)`: each code that a place takes as likely as another; places after the last take one."""
    counts = F.pad(sizes, (0, where.shape[1]), value=1)[where][..., None]
    return (torch.arange(size, device=where.device) < counts) / counts


def report(result: Speculated) -> str:
    """One line: how many codes were drawn in a pass."""
    codes, passes = int(result.drawn.sum()), int(result.passes.sum())
    return f"{codes / max(passes, 1):.2f} codes a pass: {codes} codes of {len(result.codes)} images in {passes} passes"
