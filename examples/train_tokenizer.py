"""Train a tokenizer on a folder of images.

python examples/train_tokenizer.py PHOTOS OUT [PATH=VALUE ...]

For example `steps=500 model.quantizer.num_codes=4096`. Stopped and started again, it goes on where it was. The same
from the shell: tvq train vqgan-tiny-64 data=PHOTOS --out OUT
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import tokenizers_vq as tvq
from tokenizers_vq.training.tracking import read_log


def main(photos: str, out: str, *overrides: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # what the command would say
    tvq.train("vqgan-tiny-64", out, f"data={photos}", *overrides)

    first, *_, last = read_log(Path(out, "log.jsonl"))
    for name in ("reconstruction", "l1", "perceptual"):
        if name in first:
            print(f"{name}: {first[name]:.3f} at step {first['step']}, {last[name]:.3f} at step {last['step']}")

    # The run is a model: load it from its folder, or send it to the Hub with tokenizer.push_to_hub("me/my-tokenizer").
    tokenizer = tvq.load(out)
    layout = tokenizer.code_layout()
    print(f"{out}: {layout.length} codes of {layout.sizes[0]} an image, fingerprint {tokenizer.fingerprint[:12]}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
