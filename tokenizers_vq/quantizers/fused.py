"""The search on a GPU that is fast in float64, as one kernel: every pair is scored by itself, and no score is kept.

No bound, no doubt, and nothing that the host would have to ask for. Needs Triton, which comes with torch for CUDA.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from tokenizers_vq.quantizers.scores import Score, normalised

_ROWS, _CODES = 64, 64  # vectors and codes of a tile of scores
_PROGRAMS = 1024  # as many work side by side: where vectors are few, each sees a part of the codes
_FAST = {(8, 0), (9, 0), (10, 0)}  # A100, H100, B200: half or a quarter of float32's speed; others have a 64th


@cache
def fuses(device: torch.device) -> bool:
    """Whether a device takes this search."""
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) not in _FAST:
        return False
    try:
        ours = fused(torch.eye(3, 2, device=device), torch.eye(2, device=device), "euclidean")
    except Exception:  # no Triton, or one that cannot compile here: there is another way
        return False
    return ours.tolist() == [0, 1, 0]


def fused(x: Tensor, codebook: Tensor, score: Score) -> Tensor:
    """`(N, D)`, `(K, D)` -> int64 `(N,)`; in float64, of equal scores the lowest index."""
    if score == "cosine":
        x, codebook = normalised(x.double()), normalised(codebook.double())
    (count, width), size = x.shape, len(codebook)
    tiles = -(-count // _ROWS)
    parts = max(1, min(_PROGRAMS // tiles, -(-size // (4 * _CODES))))
    share = -(-size // (parts * _CODES)) * _CODES
    cost = torch.empty(parts, count, dtype=torch.float64, device=x.device)
    index = torch.empty(parts, count, dtype=torch.int64, device=x.device)
    from tokenizers_vq.quantizers.kernel import nearest

    # Columns of both lie together: a tile reads the same coordinate of many.
    nearest[(tiles, parts)](
        x.T.contiguous(), codebook.T.contiguous(), cost, index, count, size, width, share,
        DOT=score != "euclidean", ROWS=_ROWS, CODES=_CODES,
    )  # fmt: skip
    if parts == 1:
        return index[0]
    least = cost.amin(0)
    return torch.where(cost == least, index, size).amin(0).clamp_(max=size - 1)
