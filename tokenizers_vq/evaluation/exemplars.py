"""Pictures kept while a split passes by: patches of every code, and a fair sample of reconstructions."""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import torch
from torch import Tensor

from tokenizers_vq.codes import CodeLayout, Codes
from tokenizers_vq.evaluation.figures import display
from tokenizers_vq.evaluation.usage import DENSE_LIMIT, Usage


class Exemplar(NamedTuple):
    """A code and where it occurred."""

    code: int
    occurrences: int
    patches: list[Tensor]
    """uint8 (h, w, 3)"""


class Sample:
    """`size` of the images that pass, each with equal chance (reservoir sampling, fixed seed), in their order."""

    def __init__(self, size: int = 16) -> None:
        self.size, self.seen, self._random = size, 0, random.Random(0)
        self._kept: list[tuple[int, Tensor, Tensor]] = []

    def update(self, images: Tensor, reconstructions: Tensor) -> None:
        """Adds images and reconstructions `(B, C, H, W)` in [-1, 1]."""
        for index in range(len(images)):
            slot = len(self._kept) if len(self._kept) < self.size else self._random.randint(0, self.seen)
            if slot < self.size:
                both = display(torch.stack([images[index], reconstructions[index]]))
                self._kept[slot : slot + 1] = [(self.seen, both[0], both[1])]
            self.seen += 1

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Original and reconstruction, uint8 `(H, W, 3)`."""
        return [(original, made) for _, original, made in sorted(self._kept, key=lambda kept: kept[0])]


def finest(layout: CodeLayout) -> int:
    """The first level of the finest two-dimensional grid, of the last grid where none is, as a number of a stream."""
    areas = [math.prod(grid) if len(grid) == 2 else 0 for grid in layout.grids]
    return (areas.index(max(areas)) if max(areas) else len(areas) - 1) * layout.levels


class Exemplars:
    """The first `per_code` patches of each code of one stream, by default the first level of the finest grid in 2-d.

    A patch is the image around the code's cell, twice the cell's side and at least 16 pixels. Codes of
    one-dimensional grids have no place in the image: their patches are whole images. `budget`: bytes of pixels kept;
    once it is spent only codes already met stay. Above 2^20 codes nothing is kept.
    """

    def __init__(
        self,
        layout: CodeLayout,
        height: int,
        width: int,
        per_code: int = 9,
        budget: int = 2**27,
        stream: int | None = None,
    ) -> None:
        self.stream, self.size = finest(layout) if stream is None else stream, (height, width)
        self.grid = layout.grids[self.stream // layout.levels]
        self._layout, self.located = layout, len(self.grid) == 2
        self.enabled = layout.sizes[self.stream] <= DENSE_LIMIT
        self.window = (height, width)
        if self.located:
            cells = (-(-height // self.grid[0]), -(-width // self.grid[1]))
            self.window = (min(height, max(2 * cells[0], 16)), min(width, max(2 * cells[1], 16)))
        patch = 3 * self.window[0] * self.window[1]
        self.per_code, self._left = per_code, budget // patch
        self._met = torch.zeros(layout.sizes[self.stream] if self.enabled else 0, dtype=torch.int64)
        self._patches: dict[int, list[Tensor]] = {}

    def update(self, images: Tensor, codes: Codes) -> None:
        """Adds images `(B, C, H, W)` in [-1, 1] and their codes."""
        if not self.enabled or self._left <= 0:
            return
        tokens = self._layout.split(codes)[self.stream].cpu()
        flat = tokens.flatten()
        order = flat.argsort(stable=True)
        values, counts = torch.unique_consecutive(flat[order], return_counts=True)
        nth = torch.arange(len(flat)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        wanted = order[nth + self._met[flat[order]] < self.per_code].sort().values
        self._met[values] += counts
        if not len(wanted):
            return
        pixels = display(images)
        for place in wanted.tolist()[: self._left]:
            image, position = divmod(place, tokens.shape[1])
            self._patches.setdefault(int(flat[place]), []).append(self._crop(pixels[image], position))
        self._left -= len(wanted)

    def _crop(self, pixels: Tensor, position: int) -> Tensor:
        if not self.located:
            return pixels.clone()
        starts = []
        for index, cells, side, window in zip(
            divmod(position, self.grid[1]), self.grid, self.size, self.window, strict=True
        ):
            centre = (index + 0.5) * side / cells
            starts.append(int(min(max(centre - window / 2, 0), side - window)))
        return pixels[starts[0] : starts[0] + self.window[0], starts[1] : starts[1] + self.window[1]].clone()

    def patches(self, code: int) -> list[Tensor]:
        """Those of one code, uint8 `(h, w, 3)`."""
        return self._patches.get(code, [])

    def extremes(self, usage: Usage, codes: int = 8) -> tuple[list[Exemplar], list[Exemplar]]:
        """The most used codes, and the least used that occurred at all, each with its patches."""
        stream = usage.streams[self.stream]
        order = stream.counts.argsort(descending=True, stable=True).tolist()
        found = [
            Exemplar(code, int(stream.counts[index]), self._patches[code])
            for index in order
            if (code := int(stream.codes[index])) in self._patches
        ]
        most = found[: min(codes, (len(found) + 1) // 2)]
        return most, found[len(most) :][-codes:][::-1]
