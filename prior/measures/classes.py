"""Measures from class probabilities and from classes of neighbours."""

from __future__ import annotations

import torch
from torch import Tensor


def class_score(logits: Tensor, splits: int = 1) -> float:
    """exp of the mean of KL(p(y | x) || p(y)) over images (Salimans et al., arXiv 1606.03498, section 4); `(n, K)`.

    It is called Inception Score only where Inception gave the logits. Between 1 and K: sure of each image, and all
    classes as often. `splits`: the mean over so many equal parts. Raises `ValueError` for fewer images than splits.
    """
    if not 1 <= splits <= len(logits):
        raise ValueError(f"{len(logits)} images cannot be split into {splits} parts")
    scores = []
    for part in logits.double().log_softmax(dim=1).tensor_split(splits):
        marginal = part.exp().mean(dim=0).log()
        scores.append((part.exp() * (part - marginal)).sum(dim=1).mean().exp())
    return float(torch.stack(scores).mean())


def nearest_classes(features: Tensor, references: Tensor, labels: Tensor, k: int = 5) -> Tensor:
    """int64 `(n,)`: the class of most of the k nearest references `(m, D)`; of equals the one of the nearest.

    A judge of classes that needs no classifier of them.
    """
    k = min(k, len(references))
    distances = torch.cdist(features.double(), references.double(), compute_mode="donot_use_mm_for_euclid_dist")
    order = distances.topk(k, dim=1, largest=False).indices
    near = labels[order]
    votes = (near[:, :, None] == near[:, None, :]).sum(dim=2)
    # The first of the classes with most votes: argmax takes any of equals, so rank breaks the tie.
    ranked = votes * (k + 1) - torch.arange(k)
    return near.gather(1, ranked.argmax(dim=1, keepdim=True))[:, 0]
