"""What the measures of samples do to real images that were damaged, by known amounts.

    python -m tests.benchmarks.measures DATA --count 500 --out table.json

Half of the images are compared with the other half, damaged by blur, noise, JPEG and halving in growing strength, and
with one image a class again and again. Prints a row for each: feature distance, class score, precision, recall, density
and coverage. What is not damaged is the floor.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import tokenizers_vq._torchvision  # noqa: F401  (before anything that imports torchvision)
from prior.measures import Judge, Seen, class_score, density_coverage, precision_recall
from tokenizers_vq import images as pictures
from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.loading import evaluation_batches

Damage = Callable[[Tensor], Tensor]


def blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of that many pixels, edges mirrored."""
    reach = max(1, round(3 * sigma))
    weights = torch.exp(-torch.arange(-reach, reach + 1).float().square() / (2 * sigma**2))
    weights = (weights / weights.sum()).expand(images.shape[1], 1, 1, -1)
    padded = F.pad(images, (reach, reach, reach, reach), mode="reflect")
    rows = F.conv2d(padded, weights, groups=images.shape[1])
    return F.conv2d(rows, weights.transpose(2, 3), groups=images.shape[1])


def noise(images: Tensor, std: float) -> Tensor:
    """Gaussian noise on values in [-1, 1]; the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return (images + std * torch.randn(images.shape, generator=generator)).clamp(-1, 1)


def jpeg(images: Tensor, quality: float) -> Tensor:
    """Through a JPEG file of that quality."""
    found = []
    for image in images:
        buffer = io.BytesIO()
        pictures.to_pil(image).save(buffer, format="JPEG", quality=int(quality))
        found.append(pictures.from_uint8(pictures.decode(buffer.getvalue(), len(image), "image")))
    return torch.stack(found)


def halve(images: Tensor, times: float) -> Tensor:
    """Halved so many times, and enlarged again."""
    size = [side // 2 ** int(times) for side in images.shape[-2:]]
    small = F.interpolate(images, size, mode="bicubic", antialias=True)
    return F.interpolate(small, images.shape[-2:], mode="bicubic", antialias=True).clamp(-1, 1)


STRENGTHS: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "blur": (blur, (0.5, 1.0, 2.0, 4.0)),
    "noise": (noise, (0.05, 0.1, 0.2, 0.4)),
    "jpeg": (jpeg, (75, 40, 20, 8)),
    "halving": (halve, (1, 2, 3)),
}
"""how images are damaged, in growing strength"""


def damages() -> dict[str, Damage]:
    """Every damage by name, weaker before stronger."""

    def fixed(function: Callable[[Tensor, float], Tensor], strength: float) -> Damage:
        return lambda images: function(images, strength)

    return {
        f"{name} {strength:g}": fixed(function, strength)
        for name, (function, strengths) in STRENGTHS.items()
        for strength in strengths
    }


def row(real: Seen, other: Seen) -> dict[str, float]:
    """All measures of one kind of images against real ones."""
    precision, recall = precision_recall(real.features, other.features)
    density, coverage = density_coverage(real.features, other.features)
    return {
        "distance": other.distance(real),
        "class_score": class_score(other.logits),
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
    }


def one_a_class(seen: Seen) -> Seen:
    """As many rows, of one image a class the judge is surest of, each as often."""
    probabilities = seen.logits.softmax(dim=1)
    sure, classes = probabilities.max(dim=1)
    best = [int(torch.where(classes == one, sure, -1.0).argmax()) for one in classes.unique().tolist()]
    return seen.part(torch.tensor(best)[torch.arange(len(sure)) % len(best)])


def table(images: Tensor, judge: Judge, chosen: dict[str, Damage]) -> dict[str, dict[str, float]]:
    """Rows by name: the floor, every damage, one image a class."""
    first, second = images[::2], images[1::2]
    real, floor = judge.see(first.split(32)), judge.see(second.split(32))
    rows = {"other real images": row(real, floor), "one image a class": row(real, one_a_class(floor))}
    for name, damage in chosen.items():
        rows[name] = row(real, judge.see(damage(second).split(32)))
    return rows


def main() -> None:
    """Read the options, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--count", type=int, default=500, help="images on each side")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--layer", default="blocks.4")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    config = DataConfig(path=options.data, limit=2 * options.count)
    batches = evaluation_batches(config, image_size=options.image_size, channels=3, batch_size=32)
    images = torch.cat([batch["images"] for batch in batches])
    found = table(images, Judge(layer=options.layer), damages())
    print(f"| {options.count} images a side, {options.layer} | " + " | ".join(next(iter(found.values()))) + " |")
    for name, values in found.items():
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values.values()) + " |")
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
