"""Precision, recall, density, coverage, and nearest neighbours: samples against real images in a space of features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_ROWS = 1024


class Manifold(NamedTuple):
    """Quality and variety, each in [0, 1] but density, which may exceed 1."""

    quality: float
    """precision, or density"""
    variety: float
    """recall, or coverage"""


class Nearest(NamedTuple):
    """The nearest reference of each row."""

    distances: Tensor
    """float64 `(n,)`"""
    indices: Tensor
    """int64 `(n,)`"""


def precision_recall(real: Tensor, samples: Tensor, k: int = 3) -> Manifold:
    """Improved precision and recall (Kynkaanniemi et al., arXiv 1904.06991, eq. 1 and 2); features `(n, D)`, `(m, D)`.

    Precision is the share of samples inside a ball around a real image whose radius reaches the k-th nearest other real
    one; recall the share of real images inside such a ball around a sample. Raises `ValueError` for k images or fewer.
    """
    return Manifold(_inside(samples, real, radii(real, k)), _inside(real, samples, radii(samples, k)))


def density_coverage(real: Tensor, samples: Tensor, k: int = 5) -> Manifold:
    """Density and coverage (Naeem et al., arXiv 2002.09797, eq. 3 and 4); features `(n, D)` and `(m, D)`.

    Density is how many real images' balls a sample lies in, on average, over k; coverage the share of real images whose
    ball holds a sample. Balls are open, as in the authors' code. Raises `ValueError` for k real images or fewer.
    """
    reach, within = radii(real, k), 0
    covered = torch.zeros(len(real), dtype=torch.bool)
    for _, distances in _blocks(samples, real):
        inside = distances < reach
        within += int(inside.sum())
        covered |= inside.any(dim=0)
    return Manifold(within / (k * len(samples)), float(covered.double().mean()))


def radii(features: Tensor, k: int) -> Tensor:
    """float64 `(n,)`: the distance of each row to its k-th nearest other one."""
    if not 1 <= k < len(features):
        raise ValueError(f"the {k} nearest of {len(features)} images cannot be told: give more images, or a smaller k")
    found = []
    for first, distances in _blocks(features, features):
        rows = torch.arange(len(distances))
        distances[rows, first + rows] = -1.0  # itself, before all that are as near
        found.append(distances.kthvalue(k + 1, dim=1).values)
    return torch.cat(found)


def nearest(features: Tensor, references: Tensor) -> Nearest:
    """The nearest of the references `(m, D)` to each row `(n, D)`, by Euclidean distance; of equals the first."""
    found = [distances.min(dim=1) for _, distances in _blocks(features, references)]
    return Nearest(torch.cat([one.values for one in found]), torch.cat([one.indices for one in found]))


def _inside(points: Tensor, centres: Tensor, reach: Tensor) -> float:
    """Share of the points that lie in a ball around a centre."""
    inside = [(distances <= reach).any(dim=1) for _, distances in _blocks(points, centres)]
    return float(torch.cat(inside).double().mean())


def _blocks(first: Tensor, second: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Distances float64 of some rows to all of the others, and the number of the first of these rows."""
    others = second.double().cpu()
    for start in range(0, len(first), _ROWS):
        # Not by a product: of close points it leaves the rounding alone.
        part = first[start : start + _ROWS].double().cpu()
        yield start, torch.cdist(part, others, compute_mode="donot_use_mm_for_euclid_dist")
