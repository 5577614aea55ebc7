"""Complete halves of images and masked boxes with a prior, several times each, in one picture.

python examples/complete_images.py MODEL OUT.png IMAGE [IMAGE ...] [--class NAME] [FIELD=VALUE ...]

A row an image and mask: the image, what was kept of it, four completions. For one picture and a mask of your own:
tvq-prior inpaint MODEL IMAGE MASK --out OUT.png
"""

from __future__ import annotations

import sys

import torch

import prior
import tokenizers_vq as tvq
from prior.decoding import grid, open_tokenizer
from prior.inpainting import inpaint
from tokenizers_vq.config import apply_overrides


def main(model: str, out: str, *arguments: str) -> None:
    given, told = list(arguments), None
    if "--class" in given:
        place = given.index("--class")
        told = given[place + 1]
        del given[place : place + 2]
    settings = apply_overrides({}, [one for one in given if "=" in one])
    made = prior.load(model)
    tokenizer = open_tokenizer(made.config.tokenizer, made.config.fingerprint, model, "cpu")
    height, width = tokenizer.config.size

    half, box = (torch.zeros(height, width, dtype=torch.bool) for _ in range(2))
    half[height // 2 :] = True
    box[height // 4 : -(height // 4), width // 4 : -(width // 4)] = True
    if not made.network.masked:
        print(f"{model} draws codes in order: what it draws in the box does not know what lies below it")

    rows = []
    for path in (one for one in given if "=" not in one):
        image = tvq.images.read(path, size=tokenizer.config.size)
        for mask in (half, box):
            found = inpaint(made, tokenizer, image, mask, 4, told, settings)
            rows += [image, torch.where(mask, torch.zeros(()), image), found.images]
            print(f"{path}: {int(found.drawn.sum())} of {len(found.drawn)} codes drawn anew")
    tvq.images.to_pil(grid(torch.cat(rows), columns=6)).save(out)
    print(f"{out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
