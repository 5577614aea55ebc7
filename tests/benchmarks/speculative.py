"""Speculative Jacobi decoding against one code at a time: codes a pass, and seconds of processor time an image.

    python -m tests.benchmarks.speculative --model gpt-tiny-imagenet-64 --images 4
    python -m tests.benchmarks.speculative --layers 12 --dim 768 --tokens 256        # untrained: the cost of a pass

Rows are drawn one by one (batch 1), the case that it is made for; the shipped prior's codes are of photographs, hard to
foresee. A random network accepts nearly all, as its codes hardly depend on each other: its speed-up is a bound.
"""

from __future__ import annotations

import argparse
import logging
import re
import time

import torch

import prior
from prior.conditions import ClassConfig
from prior.model import Prior, PriorConfig
from prior.networks import autoregressive
from prior.networks.gpt import GptConfig
from prior.sequences import LayoutConfig


def network(layers: int, dim: int, tokens: int) -> Prior:
    """An untrained prior of `tokens` codes of 16,384."""
    side = int(tokens**0.5)
    made = GptConfig(layers=layers, dim=dim, heads=dim // 64)
    layout = LayoutConfig(grids=((side, side),), levels=1, sizes=(16384,))
    return Prior(PriorConfig(network=made, condition=ClassConfig(num_classes=10), layout=layout)).eval()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", default="gpt-tiny-imagenet-64")
    arguments.add_argument("--layers", type=int, help="an untrained network of this size instead")
    arguments.add_argument("--dim", type=int, default=768)
    arguments.add_argument("--tokens", type=int, default=256)
    arguments.add_argument("--images", type=int, default=4)
    arguments.add_argument("--windows", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    arguments.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0])
    arguments.add_argument("--top-p", type=float, nargs="+", default=[1.0, 0.9])
    given = arguments.parse_args()
    torch.set_num_threads(1)
    model = network(given.layers, given.dim, given.tokens) if given.layers else prior.load(given.model)
    said: list[str] = []

    def hear(record: logging.LogRecord) -> bool:
        said.append(record.getMessage())
        return False

    before = autoregressive.logger.level
    autoregressive.logger.setLevel(logging.INFO)
    autoregressive.logger.addFilter(hear)
    try:
        measure(model, given, said)
    finally:
        autoregressive.logger.removeFilter(hear)
        autoregressive.logger.setLevel(before)


def measure(model: Prior, given: argparse.Namespace, said: list[str]) -> None:
    """Print a line a setting; `said` is what the sampler logs."""
    print("guidance | top-p | window | codes a pass | processor s an image | speed-up")
    for guidance in given.guidance:
        for top_p in given.top_p:
            plain = 0.0
            for window in given.windows:
                said.clear()
                model.sample(1, 0, guidance=guidance, top_p=top_p, window=window, seed=99)  # warm
                said.clear()
                start = time.process_time()
                for image in range(given.images):
                    model.sample(1, image, guidance=guidance, top_p=top_p, window=window, first=image)
                spent = (time.process_time() - start) / given.images
                plain = plain or spent
                counts = [list(map(int, re.findall(r": (\d+) codes .* in (\d+) passes", line)[0])) for line in said]
                a_pass = sum(codes for codes, _ in counts) / max(sum(passes for _, passes in counts), 1) or 1.0
                print(
                    f"{guidance:g} | {top_p:g} | {window} | {a_pass:.2f} | {spent:.3f} | {plain / spent:.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
