"""What lies half-way between the features of two photographs, on the straight line and on the arc, beside pixels.

python -m tests.benchmarks.interpolation --tokenizer vit-vqgan-tiny-64 --data ../shared/data/photos-256

For a tokenizer whose codes have length 1; each photograph is paired with the next.
"""

from __future__ import annotations

import argparse
import math

import torch
import torch.nn.functional as F
from torch import Tensor

import tokenizers_vq as tvq
from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.loading import evaluation_batches


def psnr(one: Tensor, other: Tensor) -> float:
    """Mean over images `(n, C, H, W)` in [-1, 1], dB."""
    return float((10 * torch.log10(4 / (one - other).square().mean(dim=(1, 2, 3)))).mean())


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="vit-vqgan-tiny-64")
    parser.add_argument("--data", required=True)
    chosen = parser.parse_args()
    tokenizer = tvq.load(chosen.tokenizer)
    size, channels, quantizer = tokenizer.config.image_size, tokenizer.config.channels, tokenizer.quantizer
    batches = evaluation_batches(DataConfig(path=chosen.data), image_size=size, channels=channels, batch_size=32)
    images = torch.cat([batch["images"] for batch in batches])
    images = images[: len(images) // 2 * 2]
    features = F.normalize(torch.cat([tokenizer.encode_features(part).float() for part in images.split(32)]), dim=1)
    first, second = features[::2], features[1::2]
    straight = (first + second) / 2
    arc = F.normalize(straight, dim=1)  # the middle of the arc has the direction of the straight line's
    codes, ends = quantizer.encode(arc), (quantizer.encode(first), quantizer.encode(second))
    shown = {
        "photographs": images,
        "pixels blended": (images[::2] + images[1::2]) / 2,
        "straight": tokenizer.decode_features(straight),
        "arc": tokenizer.decode_features(arc),
        "nearest codes": tokenizer.decode(codes),
    }
    angle = float((first * second).sum(dim=1).clamp(-1, 1).acos().mean()) * 180 / math.pi
    new = float(((codes != ends[0]) & (codes != ends[1])).float().mean())
    print(f"{len(first)} pairs; mean angle between the features of a place {angle:.1f} degrees")
    print(f"length half-way on the straight line {float(straight.norm(dim=1).mean()):.3f}")
    print(f"codes half-way that are neither end's {new:.1%}")
    for name, pictures in shown.items():
        print(f"{name}: contrast {float(pictures.std(dim=(1, 2, 3)).mean()):.3f}")
    for name in ("straight", "arc", "nearest codes"):
        print(f"{name} against pixels blended: {psnr(shown[name], shown['pixels blended']):.2f} dB")
    print(f"straight against arc: {psnr(shown['straight'], shown['arc']):.2f} dB")


if __name__ == "__main__":
    main()
