"""Encode a folder of images to parquet shards of codes, read them back and decode them.

python examples/encode_decode_folder.py MODEL PHOTOS OUT

MODEL: a run, a saved folder, or a Hub repository. Writes OUT/codes (going on where it stopped) and OUT/decoded/*.png.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tokenizers_vq import BatchEncoder, images
from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.shards import read_codes, write_codes


def main(model: str, photos: str, out: str) -> None:
    encoder = BatchEncoder(model)  # a device and a precision that suit this machine
    print(f"{model} on {encoder.device} in {encoder.precision}, {encoder.layout.bits / 8:.0f} bytes an image")

    folder = Path(out, "codes")
    info = write_codes(encoder, DataConfig(path=photos), folder)
    for name, reason in info["broken"].items():
        print(f"skipped {name}: {reason}")

    # Anyone can read the shards with datasets or pyarrow; read_codes checks that they belong to this tokenizer.
    shards = read_codes(folder, encoder.fingerprint)
    print(f"{len(shards)} images of {shards.layout.length} codes in {folder}")

    pictures = Path(out, "decoded")
    pictures.mkdir(parents=True, exist_ok=True)
    for row in range(len(shards)):
        image = encoder.decode(shards[row : row + 1])
        images.to_pil(image).save(pictures / f"{row:05d}.png")

    # The same on tensors, without files: (1, 3, H, W) in [-1, 1] -> int64 (1, h, w) -> (1, 3, H, W).
    first = images.read(pictures / "00000.png").to(encoder.device)
    codes = encoder.tokenizer.encode(first)
    again = encoder.tokenizer.decode(codes)
    print(f"codes of shape {tuple(codes.shape)}, mean error {torch.mean((first - again).abs()):.3f}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
