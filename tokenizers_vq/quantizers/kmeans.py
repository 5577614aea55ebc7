"""Mini-batch k-means over the batches of all processes (Sculley, Web-scale k-means clustering, WWW 2010).

Unlike there, counts fade: the encoder learns meanwhile, and centres that forget nothing stay where features were.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq import distributed
from tokenizers_vq.quantizers.search import Score, nearest_codes

ROUNDS = 10  # Lloyd's, on the first batch
_DRAWS = 16  # in which the first centres are drawn
_MEMORY = 0.8  # of the counts, from one batch to the next
_LEAST = 0.5  # a centre with fewer rows moves away: after four batches without any, if it had one


def draw(rows: Tensor, wanted: int) -> Tensor:
    """At most `wanted` rows of the global batch, without repetition: `(N, D)` of each process -> `(n, D)` in all."""
    order = torch.randperm(rows.shape[0] * distributed.world_size())[:wanted]
    return _gather(rows, distributed.from_first(order.to(rows.device, non_blocking=True)))


def replacements(rows: Tensor, age: Tensor, after: int) -> tuple[Tensor, Tensor]:
    """Bool `(K, 1)`, which codes are to be moved, and `(K, D)`, the rows of the global batch that they are moved to.

    Those whose `age` `(K,)`, updates without use, is a multiple of `after`; so `age` stays the time since a code was
    last used, and not since it was moved. Where the batch has too few rows, the rest waits for its next turn. As many
    are drawn as could be dead: to count those that are, an accelerator would be waited for.
    """
    dead = (age > 0) & (age % after == 0)
    drawn, turn = draw(rows, len(age)), dead.long().cumsum(0) - 1
    return (dead & (turn < len(drawn)))[:, None], drawn[turn.clamp(0, len(drawn) - 1)]


def seed(rows: Tensor, centres: Tensor, *, score: Score) -> Tensor:
    """`centres` `(K, D)` moved to rows `(N, D)` of all processes; the last ones stay where there are too few rows.

    Drawn as by k-means++ (Arthur and Vassilvitskii, SODA 2007), but many at once (k-means||, arXiv 1203.6402).
    """
    share = -(-len(centres) // _DRAWS)
    seeds = draw(rows, share)
    while len(seeds) < len(centres):
        codes = nearest_codes(rows, seeds, score=score)
        positions = _far(rows, seeds[codes], min(share, len(centres) - len(seeds)))
        if not len(positions):
            break
        seeds = torch.cat([seeds, _gather(rows, positions)])
    return torch.cat([seeds, centres[len(seeds) :]])


def update(rows: Tensor, centres: Tensor, counts: Tensor, *, score: Score) -> tuple[Tensor, Tensor]:
    """One update by a batch: `(N, D)`, `(K, D)`, `(K,)` -> new centres and counts, the same in all processes.

    Each centre moves to the mean of the rows that it was given, `counts` of them before, which fade by 0.8 a batch
    (with counts of zero this is a round of Lloyd's algorithm). A centre left with less than half a row moves to a row,
    drawn with a probability that grows with its squared distance from its own centre, if there is one, and counts 0.
    `cosine` (spherical k-means) takes unit rows and gives unit centres; a past mean counts as if of unit length.
    """
    codes = nearest_codes(rows, centres, score=score)
    hits = torch.zeros_like(centres[:, 0], dtype=rows.dtype).index_add_(0, codes, torch.ones_like(rows[:, 0]))
    sums = distributed.sum(torch.zeros_like(centres).index_add_(0, codes, rows))
    kept = counts * _MEMORY
    total = kept + distributed.sum(hits)
    empty = torch.nonzero(total < _LEAST).squeeze(1)
    moved = (centres * kept[:, None] + sums) / total.clamp(min=_LEAST)[:, None]
    moved = F.normalize(moved, dim=1) if score == "cosine" else moved
    centres = torch.where(total[:, None] < _LEAST, centres, moved)
    if empty.numel():
        positions = _far(rows, centres[codes], empty.numel())
        centres[empty[: len(positions)]] = _gather(rows, positions)
        total[empty] = 0
    return centres, total


def _gather(rows: Tensor, positions: Tensor) -> Tensor:
    """Rows at positions of the global batch; each process contributes those that it holds."""
    own = positions - distributed.rank() * rows.shape[0]
    mine = (own >= 0) & (own < rows.shape[0])
    return distributed.sum(torch.where(mine[:, None], rows[own.clamp(0, rows.shape[0] - 1)], 0.0))


def _far(rows: Tensor, own: Tensor, wanted: int) -> Tensor:
    """Positions of the global batch, at most `wanted`, by squared distance from the rows' own centres, both `(N, D)`.

    Drawn without replacement. Rows that are a centre are none to draw: equal centres help nobody and slow the search.
    """
    errors = (rows - own).square().sum(1)
    table = torch.zeros(distributed.world_size(), len(errors), device=errors.device)
    table[distributed.rank()] = torch.where(errors > 1e-6 * rows.square().sum(1), errors, 0)
    weights = distributed.sum(table).flatten().cpu()
    # An exponential race draws like torch.multinomial, which takes no more than 2^24 rows.
    race = weights / torch.empty_like(weights).exponential_()
    positions = race.topk(min(wanted, int((weights > 0).sum()))).indices
    return distributed.from_first(positions.to(errors.device))
