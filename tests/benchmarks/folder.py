"""Encoding a folder of JPEGs against the slower of decoding them alone on all cores and the network alone.

    python -m tests.benchmarks.folder --threads 2

Pictures are drawn into a temporary folder; the model is the tiny VQGAN, untrained.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.benchmarks.bench import measure, parser, start, table
from tokenizers_vq import BatchEncoder, create
from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.loading import evaluation_batches


def draw(folder: Path, count: int, size: int) -> list[Path]:
    """JPEGs as detailed as photographs: noise of several scales."""
    random = np.random.default_rng(0)
    paths = [folder / f"{i:05d}.jpg" for i in range(count)]
    for path in paths:
        layers = [random.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in (4, size // 4, size)]
        coarse, middle, fine = (
            Image.fromarray(layer).resize((size, size), Image.Resampling.BICUBIC) for layer in layers
        )
        Image.blend(Image.blend(coarse, middle, 0.3), fine, 0.1).save(path, quality=90)
    return paths


def open_rgb(path: Path) -> None:
    with Image.open(path) as picture:
        picture.convert("RGB")


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--count", type=int, default=1000, help="images (default: 1000)")
    options.add_argument("--size", type=int, default=64, help="pixels of a side (default: 64)")
    options.add_argument("--batch", type=int, default=32)
    options.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="loading threads (default: all cores)"
    )
    given = options.parse_args(arguments)
    start(given)
    encoder = BatchEncoder(create("vqgan-tiny-64", [f"image_size={given.size}"]), device="cpu")
    print(f"precision {encoder.precision}, {given.workers} loading threads")
    with tempfile.TemporaryDirectory() as folder:
        paths = draw(Path(folder), given.count, given.size)
        config = DataConfig(path=folder, workers=given.workers)
        ready = torch.rand(given.batch, 3, given.size, given.size)

        def decode() -> None:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(open_rgb, paths))

        def network() -> None:
            for at in range(0, given.count, given.batch):
                encoder.encode(ready[: min(given.batch, given.count - at)])

        def ours() -> None:
            batches = evaluation_batches(
                config, image_size=given.size, channels=encoder.channels, batch_size=given.batch
            )
            for batch in batches:
                encoder.encode(batch["images"])

        runs: dict[str, Callable[[], object]] = {"JPEG decoding alone": decode, "network alone": network, "ours": ours}
        seconds = measure(runs, given.repeats)
    bound = max(("JPEG decoding alone", "network alone"), key=lambda name: seconds[name])
    table(f"{given.count} JPEGs of {given.size} px", seconds, bound, goal=1.2)


if __name__ == "__main__":
    main()
