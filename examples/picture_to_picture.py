"""Grey to colour, or a small picture to a larger one: a prior that is told another picture by its codes.

    python examples/picture_to_picture.py grey MODEL PHOTOS OUT [PATH=VALUE ...]
    python examples/picture_to_picture.py 32 MODEL PHOTOS OUT [PATH=VALUE ...]

The first word says what is told: `grey`, or the side in pixels of a smaller copy. Photos are cut, changed and encoded
as the prior trains; OUT/pictures.png then shows, of photos held out, what is told, three draws, and the photo.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import prior
import tokenizers_vq as tvq
from prior.data import Data, read_rows
from prior.decoding import decode, grid, open_tokenizer
from prior.recipe import load_recipe
from prior.training import train

DRAWS = 3


def main(told: str, model: str, photos: str, out: str, *overrides: str) -> None:
    change = "change: grey" if told == "grey" else f"image_size: {int(told)}"
    asked = [f"model.condition={{kind: image, {change}}}", "data.scale=[0.8, 1.0]", *overrides]
    recipe = load_recipe("gpt-tiny", Path(out, "codes"), asked, images=photos).replace(tokenizer=model)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    measured = train(recipe, Path(out))
    print(f"{measured.bits_per_token:.2f} bits per token on photos held out")

    made = prior.load(out)
    tokenizer = open_tokenizer(made.config.tokenizer, made.config.fingerprint, out, "cpu")
    data = Data(recipe)
    made.condition.prepare({recipe.codes: data.shards})
    batch = read_rows(data.held, data.held_rows[:6])
    codes = made.condition.take(batch)  # of the grey or small photos, kept beside the others'

    drawn = [decode(tokenizer, made, made.sample(len(codes), codes, top_p=0.95, seed=seed)) for seed in range(DRAWS)]
    photo = decode(tokenizer, made, batch["tokens"])
    seen = made.condition.tokenizer.decode(made.condition.sequence.layout.unflatten(codes)).clamp(-1, 1)
    shown = [F.interpolate(seen, photo.shape[-2:]), *drawn, photo]
    picture = grid(torch.stack(shown, dim=1).flatten(0, 1), columns=DRAWS + 2)
    tvq.images.to_pil(picture).save(Path(out, "pictures.png"))
    print(f"told, {DRAWS} draws, the photo: {Path(out, 'pictures.png')}")


if __name__ == "__main__":
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
