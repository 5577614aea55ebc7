"""Nearest-code search: the codes of a float64 search, at about the price of one float32 matrix product.

A float32 product scores all codes; those that its rounding leaves in doubt are scored again in float64 (`scores`). So
codes depend on neither blocks, nor batch, nor threads. `blocks` does so on a CPU, `launches` on an accelerator; a GPU
that is fast in float64 scores all codes in it (`fused`), and the host asks it for nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenizers_vq import checks
from tokenizers_vq.quantizers.blocks import blocked as _blocked
from tokenizers_vq.quantizers.fused import fused as _fused
from tokenizers_vq.quantizers.fused import fuses
from tokenizers_vq.quantizers.launches import launched as _launched
from tokenizers_vq.quantizers.scores import Score, normalised, wide_dtype


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
        if x.device.type == "cpu":
            return _blocked(x, codebook, score)
        return (_fused if fuses(x.device) else _launched)(x, codebook, score)


def check_finite(x: Tensor, what: str) -> None:
    """Raises `ValueError`, its line headed by `what`, where `x` (any shape but an empty one) has NaN or infinity."""

    def refuse() -> None:
        raise ValueError(f"{what} NaN or infinite values: lower the learning rate, clip gradients, or train in fp32")

    # Unlike isfinite, aminmax makes no copy.
    checks.check(torch.isfinite(torch.stack(torch.aminmax(x))).all(), refuse)


def _plain(x: Tensor, codebook: Tensor, score: Score) -> Tensor:
    """The same search for tracing: float64 throughout, blocks of codes only, no branch on values."""
    wide = wide_dtype(x)
    width = x.shape[1]
    x, centre = x.to(wide), codebook.to(wide).mean(0)
    x = x - centre if score == "euclidean" else normalised(x) if score == "cosine" else x
    best = torch.full_like(x[:, 0], torch.inf)
    index = torch.zeros_like(best, dtype=torch.int64)
    for first in range(0, codebook.shape[0], 4096):
        codes = codebook[first : first + 4096].to(wide)
        codes = codes - centre if score == "euclidean" else normalised(codes) if score == "cosine" else codes
        norms = codes.square().sum(1)
        costs = -(x @ codes.T) + (norms / 2 if score == "euclidean" else 0)
        # Equal codes may come out of a product an ulp apart: what lies within its rounding counts as equal.
        slack = (width + 8) * torch.finfo(wide).eps * (x.square().sum(1) * norms.max()).sqrt()
        least = costs.amin(1)
        place = (costs <= (least + slack)[:, None]).to(torch.uint8).argmax(1)
        better = least < best - slack
        best, index = torch.where(better, least, best), torch.where(better, place + first, index)
    return index
