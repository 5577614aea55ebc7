"""A picture to codes and back, and new pictures of a class: with what the package brings, no network, no training.

python examples/offline.py PICTURE OUT [CLASS]
"""

from __future__ import annotations

import sys
from pathlib import Path

import prior
import tokenizers_vq as tvq

PRIOR = "gpt-tiny-imagenet-64"


def main(picture: str, out: str, name: str = "goldfish") -> None:
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)

    tokenizer = tvq.load("vit-vqgan-tiny-64")
    codes = tokenizer.encode(tvq.images.read(picture, size=tokenizer.config.image_size))  # (1, h, w) int64
    tvq.images.to_pil(tokenizer.decode(codes)[0]).save(folder / "reconstruction.png")
    print(f"{codes.numel()} codes: {codes.flatten()[:8].tolist()} ...")

    model = prior.load(PRIOR)
    drawn = model.layout.unflatten(model.sample(4, name, prior.Sampler(seed=0, guidance=2.0)))
    for number, new in enumerate(tokenizer.decode(drawn)):
        tvq.images.to_pil(new).save(folder / f"{name}-{number}.png")
    print(f"reconstruction.png and 4 new pictures of '{name}' in {folder}")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
