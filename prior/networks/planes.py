"""What networks of convolutions share: codes as a plane, and what they are told as another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prior.conditions.base import Context
from prior.networks.blocks import pool
from prior.sequences import Sequence


def plane_of(sequence: Sequence, kind: str) -> tuple[int, int]:
    """Rows and columns of the codes. Raises `ValueError` for anything but one grid of one code at a place."""
    layout = sequence.layout
    if len(layout.grids) > 1 or layout.levels > 1 or len(layout.grids[0]) != 2:
        grids = " + ".join("x".join(map(str, grid)) for grid in layout.grids)
        hint = ": give it one of them with model.grids" if len(layout.grids) > 1 else ": take another kind of network"
        raise ValueError(
            f"a {kind} network predicts one grid of rows and columns with one code at a place; these codes stand on "
            f"{grids}, {layout.levels} at a place{hint}"
        )
    height, width = layout.grids[0]
    return height, width


def told_plane(context: Context, grid: tuple[int, int]) -> Tensor:
    """What a network is told at each place: `(B, D, H, W)`, or `(B, D, 1, 1)` where it is the same at all.

    Vectors that stand on a grid are repeated to the places they cover; the mean of the others is added everywhere.
    """
    if context.plane is None:
        return pool(context)[:, :, None, None]
    first, height, width = context.plane
    last = first + height * width
    vectors, mask = context.vectors, context.mask
    plane = vectors[:, first:last].transpose(1, 2).unflatten(2, (height, width))
    plane = F.interpolate(plane, grid, mode="nearest")
    if vectors.shape[1] == height * width:
        return plane
    others = torch.cat((vectors[:, :first], vectors[:, last:]), dim=1)
    real = None if mask is None else torch.cat((mask[:, :first], mask[:, last:]), dim=1)
    return plane + pool(Context(others, real))[:, :, None, None]


def at(plane: Tensor, row: int, columns: slice) -> Tensor:
    """Columns of a row `(B, D, 1, n)` of a plane; one that is the same at all places stays."""
    return plane if plane.shape[2:] == (1, 1) else plane[:, :, row : row + 1, columns]
