"""How far samples of one class are from each other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def spread(
    images: Tensor, labels: Tensor, distance: Callable[[Tensor, Tensor], Tensor], most: int = 200, seed: int = 0
) -> float | None:
    """Mean distance of pairs of images of one class; None where no class has two.

    `distance`: pairs `(B, C, H, W)` -> `(B,)`, such as LPIPS (the diversity score of StarGAN v2, arXiv 1912.01865,
    appendix C). At most `most` pairs, drawn by `seed` among all.
    """
    same = (labels[:, None] == labels[None, :]).triu(diagonal=1).nonzero()
    if not len(same):
        return None
    order = torch.randperm(len(same), generator=torch.Generator().manual_seed(seed))[:most]
    total = 0.0
    for pairs in same[order].split(32):
        total += float(distance(images[pairs[:, 0]], images[pairs[:, 1]]).double().sum())
    return total / min(most, len(same))
