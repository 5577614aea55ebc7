"""Rotary positions on a grid (RoPE, arXiv 2104.09864; rows and columns by halves: LlamaGen, arXiv 2406.06525)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_angles(positions: Tensor, head_dim: int, base: float, scale: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Positions `(..., N, 4)` -> float32 `(..., N, head_dim / 2)`: the angle of each pair of channels.

    The first half of the pairs turns with the row, the second half with the column. `scale` multiplies rows and columns
    (position interpolation, arXiv 2306.15595).
    """
    count = head_dim // 4
    frequencies = base ** (-torch.arange(count, device=positions.device, dtype=torch.float32) / count)
    places = positions[..., 1:3, None].float()
    if scale != (1.0, 1.0):
        places = places * torch.tensor(scale, device=positions.device)[:, None]
    return (places * frequencies).flatten(-2)


def row_angles(places: Tensor, head_dim: int, base: float) -> Tensor:
    """Places `(n,)` in a row -> float32 `(n, head_dim / 2)`: the angle of each pair of channels."""
    pairs = head_dim // 2
    frequencies = base ** (-torch.arange(pairs, device=places.device, dtype=torch.float32) / pairs)
    return places[:, None] * frequencies


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn neighbouring channels of `x` `(B, heads, N, head_dim)`, in float32.

    `turns`: cosines and sines, `(2, N, head_dim / 2)` or one a row, `(2, B, 1, N, head_dim / 2)`.
    """
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = turns
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


def turns_of(angles: Tensor, still: int = 0, vanish: bool = False) -> Tensor:
    """Cosines and sines `(2, *angles.shape)`; of the first `still` places zeros where they `vanish`.

    LlamaGen's tables hold zeros at the places of the condition: its queries and keys vanish there.
    """
    turns = torch.stack((angles.cos(), angles.sin()))
    if vanish:
        turns[..., :still, :] = 0
    return turns
