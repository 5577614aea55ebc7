"""Nearest-code search against a bare matrix product in cache-sized blocks: `python -m tests.benchmarks.search`.

`--books`: codebooks as training may leave them, against one of random codes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tests.benchmarks.bench import compare, parser, start
from tokenizers_vq.quantizers.search import nearest_codes

GOALS = {
    (1024, 1024, 256): 1.3,
    (4096, 8192, 32): 1.4,
    (16384, 8192, 8): 1.9,
    (16384, 16384, 256): 1.2,
    (65536, 262144, 8): 1.5,
}
BOUND = "mm in blocks (bound)"
LARGE = 1 << 30
"""scores beyond which peers, which hold them all, do not run"""


def products(x: Tensor, codebook: Tensor, rows: int = 256, tile: int = 512) -> None:
    """All scores, none kept: 256 x 512 was the fastest block at every size (256 KiB to 4 MiB tried)."""
    buffer = torch.empty(tile * rows)
    for part in x.split(rows):
        for some in codebook.split(tile):
            torch.mm(some, part.T, out=buffer[: len(some) * len(part)].view(len(some), len(part)))


def expanded(x: Tensor, codebook: Tensor) -> Tensor:
    """The search of most VQ repositories."""
    return (x.square().sum(1, keepdim=True) - 2 * x @ codebook.T + codebook.square().sum(1)).argmin(1)


def lucidrains(x: Tensor, codebook: Tensor) -> Callable[[], object] | None:
    """vector-quantize-pytorch in eval mode, where it is installed or pointed to."""
    try:
        from vector_quantize_pytorch import VectorQuantize
    except ImportError:
        return None
    peer = VectorQuantize(dim=x.shape[1], codebook_size=len(codebook)).eval()
    peer._codebook.embed.data.copy_(codebook[None])
    return torch.no_grad()(lambda: peer(x[None])[1])


def peak(size: tuple[int, int, int], name: str) -> float:
    """MB that a search adds to the resident memory of a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.search", "--memory", name, *map(str, size)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


SEARCHES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ours": nearest_codes,
    "cdist + argmin": lambda x, codebook: torch.cdist(x, codebook).argmin(1),
    "x^2 - 2xc + c^2, argmin": expanded,
}


def memory(name: str, count: int, size: int, width: int) -> None:
    torch.set_num_threads(1)
    x, codebook = torch.randn(count, width), torch.randn(size, width)
    # Code and buffers of the libraries are loaded before the count.
    SEARCHES[name](x[:64].clone(), codebook[:64].clone())
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts again from here
    before = high_water()
    codes = SEARCHES[name](x, codebook)
    print((high_water() - before) / 1e6 - codes.nbytes / 1e6)


def high_water() -> float:
    status = Path("/proc/self/status").read_text()
    return 1024 * float(status.split("VmHWM:")[1].split()[0])


def books(size: int, width: int) -> dict[str, Tensor]:
    """Codebooks `(K, D)`: of random codes, and as training may leave them."""
    random = torch.randn(size, width)
    unmoved, collapsed = random.clone(), random.clone()
    unmoved[size // 2 :] = torch.rand(size - size // 2, width) * 2 / size - 1 / size
    collapsed[size // 2 :] = random[0]
    few = torch.randn(size // 64, width).repeat(64, 1)
    return {
        "random": random,
        "half as they began": unmoved,
        "half one code": collapsed,
        "clusters within 1e-3": few + 1e-3 * torch.randn(few.shape),
        "every code 64 times": few,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--memory", nargs=4, metavar=("NAME", "N", "K", "D"), help="print one search's extra MB")
    options.add_argument("--books", nargs=3, type=int, metavar=("N", "K", "D"), help="codebooks in place of sizes")
    options.add_argument("--quick", action="store_true", help="leave out the largest size")
    chosen = options.parse_args()
    if chosen.memory:
        memory(chosen.memory[0], *map(int, chosen.memory[1:]))
        return
    start(chosen)
    if chosen.books:
        count, codes, width = chosen.books
        x = torch.randn(count, width)
        found = {name: lambda c=c: nearest_codes(x, c) for name, c in books(codes, width).items()}  # type: ignore[misc]
        compare(f"{count} x {codes} x {width}", found, "random", goal=1.5, repeats=chosen.repeats)
        return
    for size, goal in GOALS.items():
        count, codes, width = size
        large = count * codes > LARGE
        if large and chosen.quick:
            continue
        x, codebook = torch.randn(count, width), torch.randn(codes, width)
        names = ["ours"] if large else list(SEARCHES)
        runs: dict[str, Callable[[], object]] = {BOUND: lambda x=x, c=codebook: products(x, c)}  # type: ignore[misc]
        runs |= {name: lambda f=SEARCHES[name], x=x, c=codebook: f(x, c) for name in names}  # type: ignore[misc]
        peer = None if large else lucidrains(x, codebook)
        runs |= {"vector-quantize-pytorch": peer} if peer else {}
        compare(f"{count} x {codes} x {width}", runs, BOUND, goal=goal, repeats=2 if large else chosen.repeats)
        if chosen.device == "cpu":
            print("  extra memory: " + ", ".join(f"{name} {peak(size, name):.1f} MB" for name in names))


if __name__ == "__main__":
    main()
