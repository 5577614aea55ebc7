"""The search on an accelerator, where launches cost more than memory: few and large products with the whole codebook.

Float64 only for those codes that the product's bound leaves in doubt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenizers_vq.devices import full_float32
from tokenizers_vq.quantizers.scores import Score, as_rows, as_weights, pair_costs, product_error, wide_dtype

_LAUNCH = 1 << 25  # scores a product, 128 MiB in float32
_PAIRS = 1 << 21  # float64 numbers at a time where pairs are scored by themselves, 16 MiB


def launched(x: Tensor, codebook: Tensor, score: Score) -> Tensor:
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
                vectors = _rows(x[part], centre, score, dtype)
                length[part] = torch.linalg.vector_norm(vectors[:, :-1], dim=1)
                scores = vectors @ block
                best, place = scores.min(1)
                second = scores.scatter_(1, place[:, None], torch.inf).amin(1)
                del scores
                other[part] = torch.minimum(torch.minimum(other[part], second), torch.maximum(least[part], best))
                codes[part] = torch.where(best < least[part], place + first, codes[part])
                least[part] = torch.minimum(least[part], best)
        clear = other > least + 2 * product_error(length, longest, width, dtype, score, reduced=False)
        doubt = (~clear).nonzero().squeeze(1)  # an overflow (NaN) too
        for few in doubt.split(-(-rows // 8)):
            codes[few] = _among_near(x[few], codebook, centre, score, dtype, room)
    return codes


def _rows(x: Tensor, centre: Tensor | None, score: Score, dtype: torch.dtype) -> Tensor:
    """`(n, D)` -> `(n, D + 1)`."""
    return as_rows(x, centre, score, torch.empty(len(x), x.shape[1] + 1, dtype=dtype, device=x.device))


def _code_block(codes: Tensor, centre: Tensor | None, score: Score, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`(k, D)` -> what vectors are multiplied by, `(D + 1, k)`, and norms `(k,)`."""
    out = torch.empty(len(codes), codes.shape[1] + 1, dtype=dtype, device=codes.device)
    weights, norms = as_weights(codes, centre, score, out, 1)
    return weights.T, norms


def _among_near(
    x: Tensor, codebook: Tensor, centre: Tensor | None, score: Score, dtype: torch.dtype, room: int
) -> Tensor:
    """Codes of a few vectors: all that the products do not exclude, each by its own norm, are scored in float64."""
    size, width = codebook.shape
    vectors = _rows(x, centre, score, dtype)
    length = torch.linalg.vector_norm(vectors[:, :-1], dim=1)[:, None]
    bound = torch.full_like(length, torch.inf)
    best = torch.full((len(x),), torch.inf, dtype=wide_dtype(x), device=x.device)
    index = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for first in range(0, size, room):
        block, norms = _code_block(codebook[first : first + room], centre, score, dtype)
        scores, error = vectors @ block, product_error(length, norms, width, dtype, score, reduced=False)
        bound = torch.minimum(bound, (scores + error).amin(1, keepdim=True))
        row, code = (~(scores - error > bound)).nonzero(as_tuple=True)
        part = max(1, _PAIRS // width)
        for r, c in zip(row.split(part), (code + first).split(part), strict=True):
            cost = pair_costs(x[r], codebook[c], score)
            least = best.scatter_reduce(0, r, cost, "amin")
            winner = torch.where(cost == least[r], c, size)
            lowest = torch.full_like(index, size).scatter_reduce_(0, r, winner, "amin")
            index, best = torch.where(least < best, lowest, index), least
    return index
