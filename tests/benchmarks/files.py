"""Seconds of the processor, and memory, up to the first batch of a folder of many picture files.

    python -m tests.benchmarks.files --count 1000 200000

The files of a folder are a few pictures under many names, in 1,000 folders of classes. Each count is a process of its
own: what it holds besides (modules, the first batch) is in the figures of the first count. Linux only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.benchmarks.bench import parser, start
from tests.conftest import ROOT

RUN = """
import resource, sys, time
from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.loading import training_batches
import datasets, torch
imported = time.process_time()
batches = training_batches(DataConfig(path=sys.argv[1], workers=0), image_size=32, channels=3, batch_size=8)
opened = time.process_time()
batches.record()
known = time.process_time()
stream = iter(batches)
next(stream)
first = time.process_time()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("figures", opened - imported, known - opened, first - known, peak)
"""


def make(folder: Path, count: int) -> Path:
    """`count` names of pictures of 32 px, no more than 50,000 of one file."""
    draw = np.random.default_rng(0)
    for number in range(count):
        place = folder / f"n{number % 1000:08d}"
        if number < 1000:
            place.mkdir(parents=True)
        path = place / f"{number:08d}.png"
        if number % 50_000 == 0:
            Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
            picture = path
        else:
            os.link(picture, path)
    return folder


def main() -> None:
    """Prints the table."""
    options = parser(__doc__)
    options.add_argument("--count", type=int, nargs="+", default=[1000, 200_000])
    given = options.parse_args()
    start(given)
    print(f"\n{'files':>10} {'opened':>10} {'recorded':>10} {'first batch':>12} {'peak memory':>14}")
    with tempfile.TemporaryDirectory() as name:
        for count in given.count:
            folder = make(Path(name) / str(count), count)
            found = []
            for _ in range(given.repeats):
                command = [sys.executable, "-c", RUN, str(folder)]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
                line = next((line for line in done.stdout.splitlines() if line.startswith("figures")), None)
                assert line is not None, done.stderr
                found.append([float(figure) for figure in line.split()[1:]])
            opened, recorded, first, peak = np.median(np.array(found), axis=0)
            print(
                f"{count:>10,} {opened:>8.2f} s {recorded:>8.2f} s {first:>10.2f} s {peak / 1024:>10.0f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
