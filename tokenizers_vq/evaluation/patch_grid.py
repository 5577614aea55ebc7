"""The patch grid: how much more a picture changes across the borders of a tokenizer's patches than inside them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.evaluation.metrics import joined, unit

Stride = tuple[int, int]


def patch_stride(layout: CodeLayout, height: int, width: int) -> Stride | None:
    """Height and width in pixels of the patch that one position of the finest two-dimensional grid stands for.

    None where no grid is two-dimensional, where patches are of one pixel or are the whole image on one side, so that
    there are no steps inside or across them, and where they do not divide the image.
    """
    grids = [grid for grid in layout.grids if len(grid) == 2]
    if not grids:
        return None
    rows, columns = max(grids, key=math.prod)
    if min(rows, columns) == 1 or height % rows or width % columns or height == rows or width == columns:
        return None
    return height // rows, width // columns


class PatchGrid:
    """Mean absolute step between neighbouring pixels across patch borders, over that inside patches.

    Of the images of all processes together, their values on [0, 1]. 1 = the borders cannot be told from other places.
    """

    def __init__(self, stride: Stride) -> None:
        self.stride = stride
        self.steps = torch.zeros(2, dtype=torch.float64)  # summed across borders, and inside
        self.count = torch.zeros(2, dtype=torch.float64)
        self.images = torch.zeros((), dtype=torch.float64)

    def update(self, images: Tensor) -> None:
        """Adds images `(B, C, H, W)` in [-1, 1], whose sides the stride divides."""
        values = unit(images)
        for dim, stride in zip((2, 3), self.stride, strict=True):
            # (n,): step i lies between pixels i and i + 1
            steps = values.diff(dim=dim).abs().double().transpose(dim, -1).flatten(0, -2).sum(0).cpu()
            border = torch.arange(1, len(steps) + 1) % stride == 0
            each = images.numel() // images.shape[dim]
            self.steps += torch.stack([steps[border].sum(), steps[~border].sum()])
            self.count += each * torch.stack([border.sum(), (~border).sum()])
        self.images += len(images)

    def compute(self) -> tuple[float, int]:
        """The ratio and the number of images. Raises `ValueError` where all patches of all images are flat."""
        across, inside = joined(self.steps) / joined(self.count)
        if not inside:
            raise ValueError("every patch is flat inside, which makes the ratio infinite or undefined")
        return (across / inside).item(), int(joined(self.images))
