"""Pictures between two pictures: the pixels blended, and the features of a tokenizer blended and decoded.

python examples/interpolate.py MODEL FIRST SECOND OUT.png [COLUMNS]

Rows: pixels on a straight line; features on a straight line; features on the arc between them, where codes have length
1 (cosine codebooks, BSQ); and the nearest codes of the last. MODEL has one grid of codes.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor

import tokenizers_vq as tvq
from prior.decoding import grid


def straight(first: Tensor, second: Tensor, shares: Tensor) -> Tensor:
    """`(1, D, *grid)` and `(1, D, *grid)`, shares `(n,)` of the second -> `(n, D, *grid)`."""
    return torch.lerp(first, second, shares.view(-1, *[1] * (first.ndim - 1)))


def arc(first: Tensor, second: Tensor, shares: Tensor) -> Tensor:
    """As `straight`, of unit vectors, along the great circle between the two of each place (slerp)."""
    angle = (first * second).sum(dim=1, keepdim=True).clamp(-1 + 1e-6, 1 - 1e-6).acos()
    t = shares.view(-1, *[1] * (first.ndim - 1))
    return (torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * second) / torch.sin(angle)


@torch.no_grad()
def main(model: str, first: str, second: str, out: str, columns: str = "7") -> None:
    tokenizer = tvq.load(model)
    config, quantizer, shares = tokenizer.config, tokenizer.quantizer, torch.linspace(0, 1, int(columns))
    pixels = [tvq.images.read(path, config.channels, size=config.image_size) for path in (first, second)]
    features = [tokenizer.encode_features(picture).float() for picture in pixels]
    lengths = quantizer.lookup(quantizer.encode(torch.cat(features))).norm(dim=1)

    rows = {"pixels": straight(*pixels, shares)}
    unit = torch.allclose(lengths, torch.ones(()), atol=1e-3)
    if unit:  # the decoder knows no other lengths
        features = [F.normalize(one, dim=1) for one in features]
    between = straight(*features, shares)  # of unit vectors: shorter in the middle
    rows["straight"] = tokenizer.decode_features(between)
    if unit:
        between = arc(*features, shares)
        rows["arc"] = tokenizer.decode_features(between)
    rows["codes"] = tokenizer.decode(quantizer.encode(between))

    tvq.images.to_pil(grid(torch.cat(list(rows.values())), columns=len(shares))).save(out)
    print(f"{', '.join(rows)}, from {first} to {second}: {out}")


if __name__ == "__main__":
    if len(sys.argv) not in (5, 6):
        sys.exit(__doc__)
    main(*sys.argv[1:])
