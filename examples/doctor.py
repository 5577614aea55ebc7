"""Four runs made to fail, and what `tvq doctor` says of each; a few minutes on one core.

python examples/doctor.py PHOTOS OUT [PATH=VALUE ...]   (overrides, such as steps=1000)
"""

import contextlib
import logging
import sys
from pathlib import Path

import tokenizers_vq as tvq
from tokenizers_vq.cli import main as command
from tokenizers_vq.training.loop import NonFiniteLossError

SMALL = [
    *("model.image_size=64", "model.encoder.width=32", "model.decoder.width=32"),
    *("steps=300", "log_every=10", "checkpoint_every=300", "image_every=0", "batch_size=4"),
]
ADVERSARY = (
    "adversary={discriminator: {kind: patchgan, width: 32, layers: 2, norm: batch}, weight: 1.0, adaptive: false, "
    "start: 0, optimizer: {lr: 5.0e-3, betas: [0.5, 0.9]}}"
)
RUNS = {
    "strong-discriminator": [ADVERSARY],
    "high-learning-rate": ["optimizer={lr: 0.1}"],
    "plain-codes": ["model.quantizer={kind: vector, num_codes: 8192, dim: 256}"],
    "zero-weight": ["losses=[{kind: l2}, {kind: l1, weight: 0.0}]"],
}


def main(photos: str, out: str, *overrides: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name, fault in RUNS.items():
        print(f"\n--- {name}: {' '.join(fault)}", flush=True)
        fields = [f"data.path={photos}", *SMALL, *fault, *overrides]
        try:
            tvq.train("vqvae-tiny-64", Path(out, name), *fields, device="cpu")
        except NonFiniteLossError as error:  # the doctor tells of it, too
            print(error)
        with contextlib.suppress(SystemExit):  # the command line's status: 1, something was found
            command(["doctor", str(Path(out, name))])


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
