"""A linear classifier in closed form: ridge regression to the classes, its penalty chosen by leaving one image out."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_PENALTIES = 10.0 ** torch.arange(-5, 5.5, 0.5, dtype=torch.float64)
"""times the mean square of the features along their principal axes"""


class Ridge(NamedTuple):
    """What `fit` found; `predict` applies it."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    """float64 `(d, classes)`"""
    intercept: Tensor
    penalty: float
    """relative to the features' mean square along their principal axes"""

    def predict(self, features: Tensor) -> Tensor:
        """`(n, d)` -> the likeliest class of each, int64 `(n,)`."""
        return (((features.double() - self.mean) * self.scale) @ self.weight + self.intercept).argmax(dim=1)


def fit(features: Tensor, labels: Tensor, classes: int, *, standardise: bool = True) -> Ridge:
    """`min |X W - Y|^2 + penalty |W|^2` for features `(n, d)` and one-hot labels of `(n,)`, both centred.

    The penalty with the least squared error when each image is predicted without itself, which is exact from one
    decomposition: `r_i / (1 - h_ii)` with the residuals r and the hat matrix h (Golub, Heath and Wahba, 1979).
    `standardise` divides each feature by its deviation; what does not vary is left out.
    """
    x, y = features.double(), F.one_hot(labels, classes).double()
    mean, intercept = x.mean(dim=0), y.mean(dim=0)
    x, y = x - mean, y - intercept
    deviation = x.square().mean(dim=0).sqrt()
    varies = deviation > 1e-6 * deviation.max()
    scale = torch.where(varies, 1 / deviation if standardise else torch.ones_like(deviation), 0.0)
    x = x * scale
    axes, squares = _principal(x)
    along = x @ axes
    found = [_left_out(along, squares, y, penalty) for penalty in _PENALTIES * squares.mean()]
    best = int(torch.stack(found).argmin())
    solved = _solve(along, squares, y, _PENALTIES[best] * squares.mean())
    return Ridge(mean, scale, axes @ solved, intercept, _PENALTIES[best].item())


def _principal(x: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal axes `(d, r)` that span the rows of `(n, d)`, and the squares of the rows along them, `(r,)`."""
    count, width = x.shape
    if width <= count:
        squares, axes = torch.linalg.eigh(x.T @ x)
        return axes, squares.clamp(min=0)
    squares, rows = torch.linalg.eigh(x @ x.T)
    kept = squares > 1e-10 * squares.max().clamp(min=1e-300)
    squares, rows = squares[kept], rows[:, kept]
    return x.T @ (rows / squares.sqrt()), squares


def _solve(along: Tensor, squares: Tensor, y: Tensor, penalty: Tensor) -> Tensor:
    return (along.T @ y) / (squares + penalty).clamp(min=1e-300)[:, None]


def _left_out(along: Tensor, squares: Tensor, y: Tensor, penalty: Tensor) -> Tensor:
    """Mean squared error of images that the fit is made without."""
    residual = y - along @ _solve(along, squares, y, penalty)
    own = along.square() @ (1 / (squares + penalty).clamp(min=1e-300)) + 1 / len(along)
    return (residual / (1 - own).clamp(min=1e-9)[:, None]).square().mean()
