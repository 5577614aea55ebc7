"""Sampling against its bound: the weights' products for every token in their fastest form, and nothing else.

python -m tests.benchmarks.sampling --tokens 64
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from prior.networks.packing import product
from tests.benchmarks.ours import sampler

Run = Callable[[], object]


def seconds(run: Run) -> float:
    """One timed run."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def forms(weights: list[Tensor], inputs: list[Tensor]) -> dict[str, Run]:
    """Ways of taking all products once: inputs `(rows, in)`, weights `(out, in)`."""
    rows = inputs[0].shape[0]
    pairs = list(zip(weights, inputs, strict=True))
    columns = [x.T.contiguous() for x in inputs]
    packed = [product(weight, rows) for weight in weights]
    found: dict[str, Run] = {
        "F.linear": lambda: [F.linear(x, weight) for weight, x in pairs],
        "W @ x.T": lambda: [weight @ x for weight, x in zip(weights, columns, strict=True)],
        "prepacked": lambda: [apply(x) for apply, x in zip(packed, inputs, strict=True)],
    }
    if rows == 1:
        found["mv"] = lambda: [torch.mv(weight, x[0]) for weight, x in pairs]
    return found


def bound(layers: int, dim: int, vocabulary: int, tokens: int, rows: int, dtype: torch.dtype) -> tuple[str, Run]:
    """The fastest form's name, and a function that takes the products of all `tokens`."""
    hidden = -(-(8 * dim // 3) // 256) * 256
    shapes = [(3 * dim, dim), (dim, dim), (2 * hidden, dim), (dim, hidden)] * layers + [(vocabulary, dim)]
    weights = [torch.randn(shape).mul_(0.02).to(dtype) for shape in shapes]
    inputs = [torch.randn(rows, weight.shape[1]).to(dtype) for weight in weights]
    best: tuple[float, str, Run] | None = None
    for name, run in forms(weights, inputs).items():
        run()
        taken = statistics.median(seconds(run) for _ in range(5))
        if best is None or taken < best[0]:
            best = (taken, name, run)
    assert best is not None
    _, name, once = best

    def all_tokens() -> None:
        for _ in range(tokens):
            once()

    return name, all_tokens


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=16384)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = (options.layers, options.dim, options.vocabulary, options.tokens)
    print(
        f"{options.layers} x {options.dim}, {options.vocabulary} codes, {options.tokens} tokens, {options.threads} threads"
    )
    print("dtype     batch guidance  bound form   bound ms/token   ours ms/token   ours/bound   with/without guidance")
    for name in options.dtype:
        dtype = getattr(torch, name)
        for batch in options.batch:
            plain = 0.0
            for guidance in (1.0, 2.0):
                form, least = bound(*size, batch if guidance == 1 else 2 * batch, dtype)
                ours = sampler(*size, batch, guidance, dtype)
                ours()
                times = [(seconds(least), seconds(ours)) for _ in range(options.repeats)]
                low, high = (statistics.median(column) * 1e3 / options.tokens for column in zip(*times, strict=True))
                ratio = statistics.median(b / a for a, b in times)
                plain = high if guidance == 1 else plain
                print(
                    f"{name:9} {batch:5} {guidance:8}  {form:10} {low:16.2f} {high:15.2f} {ratio:12.2f} {high / plain:12.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
