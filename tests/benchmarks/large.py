"""Large images, whole and in the tiles of `tile="auto"`: seconds, memory, how many codes agree, and the seams.

    python -m tests.benchmarks.large --model vit-vqgan-tiny-64 --sides 256 512 1024

Each figure of memory is that of a process of its own. The seams: mean difference of neighbouring pixels across the
borders of tiles, over that of all others; 1.00 shows none. Linux only.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from tests.benchmarks.bench import parser, start
from tests.benchmarks.search import high_water
from tokenizers_vq import BatchEncoder, images
from tokenizers_vq.tiling import auto_tile


def picture(source: str, side: int) -> Tensor:
    """`(1, 3, side, side)`, mirrored photographs side by side, so that no border is sharp."""
    files = sorted(Path(source).glob("*.jpg"))[:1]
    one = images.read(files[0], size=256) if files else torch.rand(1, 3, 256, 256) * 2 - 1
    block = torch.cat([torch.cat([one, one.flip(3)], 3), torch.cat([one.flip(2), one.flip((2, 3))], 3)], 2)
    count = -(-side // block.shape[-1])
    return block.repeat(1, 1, count, count)[..., :side, :side].contiguous()


def seams(decoded: Tensor, step: int) -> float:
    """Mean difference across columns where tiles meet, over that across all others."""
    apart = (decoded[..., 1:] - decoded[..., :-1]).abs().mean((0, 1, 2))
    meets = torch.zeros(len(apart), dtype=torch.bool)
    meets[step - 1 :: step] = True
    return float(apart[meets].mean() / apart[~meets].mean()) if meets.any() else float("nan")


def alone(model: str, source: str, side: int, tile: str) -> None:
    torch.set_num_threads(1)
    encoder = BatchEncoder(
        model, device="cpu", precision="fp32", image_size=side, tile="auto" if tile == "auto" else None
    )
    view = picture(source, side)
    encoder.encode(picture(source, encoder.tokenizer.config.size[0]))
    Path("/proc/self/clear_refs").write_text("5")
    before, begin = high_water(), time.process_time()
    codes = encoder.encode(view)
    between = time.process_time()
    decoded = encoder.decode(codes)
    end, found = time.process_time(), auto_tile(encoder.tokenizer, side, side)
    used = (high_water() - before) / 2**20
    mark = seams(decoded, found // 2) if found else float("nan")
    print(between - begin, end - between, used, mark, ",".join(map(str, codes.flatten().tolist())), sep=";")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="vit-vqgan-tiny-64")
    options.add_argument("--data", default="../shared/data/photos-256", help="folder of photographs")
    options.add_argument("--sides", type=int, nargs="+", default=[256, 1024])
    options.add_argument("--tiles", nargs="+", default=["whole", "auto"], choices=["whole", "auto"])
    options.add_argument("--alone", nargs=2, metavar=("SIDE", "TILE"), help="one measurement, in this process")
    given = options.parse_args()
    if given.alone:
        alone(given.model, given.data, int(given.alone[0]), given.alone[1])
        return
    start(given)
    print("side | tiles | encode s | decode s | MiB more | seams | codes as whole")
    for side in given.sides:
        whole: list[str] | None = None
        for tile in given.tiles:
            command = [sys.executable, "-m", "tests.benchmarks.large", "--model", given.model, "--data", given.data]
            done = subprocess.run([*command, "--alone", str(side), tile], check=True, capture_output=True, text=True)
            *numbers, codes = done.stdout.strip().split(";")
            found = codes.split(",")
            same = sum(a == b for a, b in zip(found, whole, strict=True)) / len(found) if whole else float("nan")
            whole = found if tile == "whole" else whole
            encode, decode, used, mark = map(float, numbers)
            print(f"{side} | {tile} | {encode:.2f} | {decode:.2f} | {used:.0f} | {mark:.2f} | {same:.3f}", flush=True)


if __name__ == "__main__":
    main()
