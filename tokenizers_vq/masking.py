"""Which codes a mask of pixels touches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq.codes import CodeLayout

Touched = Tensor | tuple[Tensor, ...]
"""bool, shaped as one image's codes: `(*grid)` or `(*grid, L)`; a tuple, coarse first, where there are several grids"""


def check_mask(mask: Tensor) -> None:
    """Raises `ValueError` unless `mask` is bool `(H, W)`."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim != 2:
        got = (
            f"{str(mask.dtype).removeprefix('torch.')} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask)
        )
        raise ValueError(f"a mask of pixels must be bool (H, W), True where they are to go, got {got}; try mask > 0")


def touched_cells(mask: Tensor, grid: tuple[int, ...], ring: int) -> Tensor:
    """bool `(H, W)` -> bool `(h, w)`: the cells that hold a pixel of the mask, and `ring` cells around them."""
    cells = F.adaptive_max_pool2d(mask[None].float(), grid)
    return F.max_pool2d(cells, 2 * ring + 1, stride=1, padding=ring)[0] > 0


def touched_codes(cells: Tensor, layout: CodeLayout) -> list[Tensor]:
    """Cells of the features, bool `(h, w)` -> the codes of each grid that cover one of them, levels last."""
    found = []
    for grid in layout.grids:
        codes = F.adaptive_max_pool2d(cells[None].float(), grid)[0] > 0
        found.append(codes if layout.levels == 1 else codes[..., None].expand(*grid, layout.levels))
    return found
