"""Stochastic choice of codes in training (Lee et al., arXiv 2203.01941, section 3.1.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenizers_vq.quantizers.search import check_finite

_BLOCK = 1 << 21  # scores held at once: 8 MiB in float32


@torch.no_grad()
def sample_codes(rows: Tensor, codebook: Tensor, temperature: float) -> Tensor:
    """`(N, D)`, `(K, D)` -> int64 `(N,)`, code k with probability softmax_k(-|x - e_k|^2 / temperature).

    Raises `ValueError` (eager only) for non-finite vectors.
    """
    if len(rows) and not torch.compiler.is_compiling():
        check_finite(rows, "features to quantize hold")
    drawn = []
    for block in rows.split(max(1, _BLOCK // len(codebook))):
        # The largest of logits plus Gumbel noise is a draw from their softmax.
        scores = torch.addmm(codebook.square().sum(1), block, codebook.T, beta=-1, alpha=2).div_(temperature)
        drawn.append(scores.sub_(torch.empty_like(scores).exponential_().log_()).argmax(1))
    return torch.cat(drawn)
