"""Train a prior on codes and draw new images from it.

python examples/train_prior_and_sample.py CODES OUT [PATH=VALUE ...]

CODES: a folder that `tvq encode` wrote. The same from the shell: tvq-prior train gpt-tiny CODES --out OUT, then
tvq-prior sample OUT --out SAMPLES
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import prior
import tokenizers_vq as tvq
from prior.decoding import decode, grid, open_tokenizer, spread
from prior.recipe import load_recipe
from prior.training import train


def main(codes: str, out: str, *overrides: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    measured = train(load_recipe("gpt-tiny", codes, overrides), Path(out))
    print(f"{measured.bits_per_token:.2f} bits per token on held-out codes, unigram {measured.unigram:.2f}")

    model = prior.load(out)
    labels = None
    if model.config.condition.kind == "class":  # codes whose images all have a class
        labels = spread(model.condition.every(), 16)

    # Same seed, same codes. Guidance above 1 pulls towards the class, as far as its training left the class out.
    sampler = prior.Sampler(temperature=1.0, top_p=0.95, guidance=1.5 if labels is not None else 1.0, seed=0)
    tokens = model.sample(16, labels, sampler)

    # Only the tokenizer whose codes the prior knows can decode them: open_tokenizer compares the fingerprints.
    tokenizer = open_tokenizer(model.config.tokenizer, model.config.fingerprint, out, "cpu")
    picture = grid(decode(tokenizer, model, tokens), columns=4)
    tvq.images.to_pil(picture).save(Path(out, "samples.png"))
    print(f"16 new images: {Path(out, 'samples.png')}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
