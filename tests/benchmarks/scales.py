"""VAR's drawing against its bound: the weights' products for the rows of every scale, and nothing else.

python -m tests.benchmarks.scales --layers 8 --dim 512 --batch 4
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from prior.conditions import ClassConfig
from prior.model import Prior, PriorConfig
from prior.networks.var import VarConfig
from prior.sequences import LayoutConfig
from tests.benchmarks.bench import compare, parser, start
from tokenizers_vq.quantizers.multiscale import MultiscaleQuantizerConfig
from tokenizers_vq.quantizers.vector import VectorQuantizerConfig

Run = Callable[[], object]


def bound(layers: int, dim: int, codes: int, rows: list[int]) -> Run:
    """Takes all products of a network of this size, for so many rows at each scale."""
    shapes = [(3 * dim, dim), (dim, dim), (4 * dim, dim), (dim, 4 * dim)] * layers + [(codes, dim)]
    weights = [torch.randn(shape).mul_(0.02) for shape in shapes]
    inputs = [[torch.randn(count, weight.shape[1]) for weight in weights] for count in rows]
    return lambda: [[F.linear(x, w) for x, w in zip(scale, weights, strict=True)] for scale in inputs]


@torch.inference_mode()
def main() -> None:
    options = parser(__doc__)
    options.add_argument("--layers", type=int, default=16)
    options.add_argument("--dim", type=int, default=1024)
    options.add_argument("--codes", type=int, default=4096)
    options.add_argument("--scales", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6, 8, 10, 13, 16])
    options.add_argument("--batch", type=int, default=1)
    given = options.parse_args()
    start(given)
    book = MultiscaleQuantizerConfig(
        scales=tuple(given.scales), book=VectorQuantizerConfig(num_codes=given.codes, dim=32)
    )
    layout = LayoutConfig.of(book.build().layout((given.scales[-1], given.scales[-1])))
    network = VarConfig(layers=given.layers, dim=given.dim, heads=given.dim // 64)
    config = PriorConfig(network=network, condition=ClassConfig(num_classes=10), layout=layout, book=book)
    prior = Prior(config).eval().to(torch.get_default_device())
    labels = torch.arange(given.batch) % 10
    for guidance in (1.0, 2.0):
        rows = [(1 + (guidance != 1)) * given.batch * side * side for side in given.scales]
        runs: dict[str, Run] = {
            "bound (F.linear)": bound(given.layers, given.dim, given.codes, rows),
            "ours": lambda guidance=guidance: prior.sample(given.batch, labels, guidance=guidance),
        }
        title = f"VAR {given.layers} x {given.dim}, {sum(rows)} rows at {len(rows)} scales, guidance {guidance:g}"
        compare(title, runs, "bound (F.linear)", repeats=given.repeats)


if __name__ == "__main__":
    main()
