"""Images a second of whole tokenizers, quantizer included: vision transformers against CNNs at equal grid.

    python -m tests.benchmarks.families
    python -m tests.benchmarks.families --pair vit-vqgan-tiny-64 vqgan-tiny-64 --batch 8
    python -m tests.benchmarks.families --device cuda --batch 32

A pair is two presets, the second given the first's number of codes; where their grids differ it is refused. bfloat16 is
autocast, as `BatchEncoder` does. The last column is the first preset's images/s over the second's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.benchmarks.bench import measure, parser, start
from tokenizers_vq import Tokenizer, create

PAIRS = [["vit-vqgan-small", "vqgan-f8"], ["vit-vqgan-base", "vqgan-f8"], ["vit-vqgan-tiny-64", "vqgan-tiny-64"]]


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--pair", nargs=2, action="append", metavar=("VIT", "CNN"), help="presets; repeatable")
    options.add_argument("--batch", type=int, default=1)
    options.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    given = options.parse_args(arguments)
    start(given)
    for vit, cnn in given.pair or PAIRS:
        first = create(vit).eval()
        num_codes = first.quantizer.num_codes
        pair = {vit: first, cnn: create(cnn, [f"quantizer.num_codes={num_codes}"]).eval()}
        layouts = {name: tokenizer.code_layout() for name, tokenizer in pair.items()}
        if layouts[vit].grids != layouts[cnn].grids:
            raise SystemExit(
                f"{vit} and {cnn} have the grids {layouts[vit].grids} and {layouts[cnn].grids}: name others"
            )
        grid = "x".join(map(str, layouts[vit].grids[0]))
        print(f"\ngrid {grid}, {num_codes} codes, batch {given.batch}: images/s of {vit} | {cnn} | ratio")
        print("  M parameters " + " | ".join(f"{_parameters(tokenizer):.1f}" for tokenizer in pair.values()))
        for dtype in given.dtype:
            with torch.autocast(given.device, torch.bfloat16, enabled=dtype == "bfloat16"):
                _print_rates(pair, given.batch, dtype, given.repeats)


def _print_rates(pair: dict[str, Tokenizer], batch: int, dtype: str, repeats: int) -> None:
    def layout(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)

    for tokenizer in pair.values():
        tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    first = next(iter(pair.values()))
    images = layout(torch.rand(batch, 3, *first.config.size) * 2 - 1)
    codes = first.encode(images)
    encode = measure({name: lambda t=t: t.encode(images) for name, t in pair.items()}, repeats)
    decode = measure({name: lambda t=t: t.decode(codes) for name, t in pair.items()}, repeats)
    for part, seconds in (("encode", encode), ("decode", decode)):
        one, other = (batch / value for value in seconds.values())
        print(f"  {part}, {dtype:<9} {one:>8.2f} | {other:>8.2f} | {one / other:.2f}")


def _parameters(tokenizer: Tokenizer) -> float:
    return sum(p.numel() for p in tokenizer.parameters()) / 1e6


if __name__ == "__main__":
    main()
