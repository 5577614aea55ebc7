"""Coarse codes of one picture with fine codes of another: what each grid of a tokenizer says.

python examples/mix.py MODEL COARSE FINE OUT.png

MODEL has codes of several grids (vqvae2, var) or levels (rqvae). The row of pictures begins with COARSE and ends with
FINE; from picture to picture one grid or level more is taken from FINE, the finest first.
"""

from __future__ import annotations

import sys

import torch

import tokenizers_vq as tvq
from prior.decoding import grid
from tokenizers_vq.codes import Codes


def mixes(coarse: Codes, fine: Codes) -> list[Codes]:
    """Codes with all, all but the finest, ... none of their grids or levels from `coarse`, the others from `fine`."""
    if isinstance(coarse, tuple):  # one (1, h, w) a grid, coarse first
        return [coarse[:count] + tuple(fine[count:]) for count in range(len(coarse), -1, -1)]
    levels = coarse.shape[-1]  # (1, h, w, levels): each level refines the sum of those before
    return [torch.cat((coarse[..., :count], fine[..., count:]), dim=-1) for count in range(levels, -1, -1)]


def main(model: str, coarse: str, fine: str, out: str) -> None:
    tokenizer = tvq.load(model)
    layout = tokenizer.code_layout()
    if len(layout.sizes) == 1:
        sys.exit(f"{model} has one grid of one level: give a tokenizer of several, such as a VQ-VAE-2 or VAR's")

    pictures = [tvq.images.read(path, size=tokenizer.config.image_size) for path in (coarse, fine)]
    codes = [tokenizer.encode(picture) for picture in pictures]  # as in training: tensors, or a tuple of them

    row = [tokenizer.decode(mixed) for mixed in mixes(*codes)]
    tvq.images.to_pil(grid(torch.cat(row), columns=len(row))).save(out)
    parts = f"{len(layout.grids)} grids" if len(layout.grids) > 1 else f"{layout.levels} levels"
    print(f"{len(row)} pictures of {parts}, from {coarse} to {fine}: {out}")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
