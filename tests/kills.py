"""kill -9 at random moments: `python -m tests.kills train|encode|ray --kills 10`.

`ray`: workers of `tvq encode --on ray` are killed while it goes on, and all files are compared with one machine's.

Runs `tvq train` (or `tvq encode`) once undisturbed, and once killed again and again, each time going on with the same
command; then compares the final weights (the rows of codes) bitwise.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

TVQ = (sys.executable, "-m", "tokenizers_vq")


def pictures(folder: Path, count: int) -> Path:
    """Smooth random pictures of 64 px."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.png", compress_level=1)
    return folder


def disturbed(command: Sequence[str], done: Callable[[], bool], kills: int, seed: int, latest: float) -> int:
    """Run `command` until it ends by itself, killing it up to `kills` times; returns how often it was killed."""
    moments, killed = random.Random(seed), 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if killed < kills:
            try:
                process.wait(timeout=moments.uniform(0.05, latest))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                killed += 1
                continue
        _, error = process.communicate()
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed: {error.decode()}")
        assert done()
        return killed


def latest_moment(command: Sequence[str], began: Callable[[], bool], kills: int) -> float:
    """Run `command` once; seconds before which to kill it, so that it does not end before all the kills are dealt."""
    start, beginning = time.perf_counter(), 0.0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if not beginning and began():
            beginning = time.perf_counter() - start
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return beginning + 2 * (time.perf_counter() - start - beginning) / (kills + 2)


def train(folder: Path, kills: int, seed: int, steps: int) -> tuple[int, bool]:
    """(kills, whether every tensor of the checkpoint and of the model is bitwise equal)."""
    from tests.training.conftest import SMALL
    from tests.training.test_runs import everything

    data = pictures(folder / "pictures", 40)
    options = [*SMALL, f"data.path={data}", f"steps={steps}", "checkpoint_every=5", "data.workers=1"]

    def command(out: Path) -> list[str]:
        return [*TVQ, "train", "vqgan-tiny-64", *options, "--out", str(out), "--device", "cpu"]

    first = folder / "whole" / "checkpoints"
    latest = latest_moment(command(folder / "whole"), first.exists, kills)
    model = folder / "killed" / "model" / "model.safetensors"
    killed = disturbed(command(folder / "killed"), model.exists, kills, seed, latest)
    a, b = everything(folder / "whole"), everything(folder / "killed")
    return killed, a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)


def encode(folder: Path, kills: int, seed: int, images: int) -> tuple[int, bool]:
    """(kills, whether every image has its codes once, equal to the undisturbed run's)."""
    import tokenizers_vq as tvq
    from tokenizers_vq.data.shards import read_codes

    data = pictures(folder / "pictures", images)
    torch.manual_seed(0)
    tvq.create("vqvae-tiny-64").save_pretrained(folder / "model")

    def command(out: Path) -> list[str]:
        return [
            *TVQ,
            "encode",
            str(folder / "model"),
            str(data),
            "--out",
            str(out),
            "--shards",
            "16",
            "--device",
            "cpu",
        ]

    first = folder / "whole" / "codes.json"
    latest = latest_moment(command(folder / "whole"), first.exists, kills)
    killed = disturbed(command(folder / "killed"), (folder / "killed" / "codes.json").exists, kills, seed, latest)
    a, b = (read_codes(folder / name) for name in ("whole", "killed"))
    same = list(a.keys) == list(b.keys) and torch.equal(torch.as_tensor(a.codes), torch.as_tensor(b.codes))
    return killed, same and len(set(a.keys)) == len(a.keys) == images


def kill_workers(mark: str) -> int:
    """Kill the workers of Ray that hold a `ShardEncoder` and have `mark`, NAME=VALUE, in their environment."""
    killed = 0
    for process in Path("/proc").iterdir():
        try:
            name = (process / "cmdline").read_bytes()
            its = name.startswith(b"ray::") and b"ShardEncoder" in name
            if its and mark.encode() in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)
                killed += 1
        except (OSError, ValueError):
            continue
    return killed


def ray(folder: Path, kills: int, seed: int, images: int) -> tuple[int, bool]:
    """(workers killed, whether every file is that of one machine, byte for byte)."""
    import tokenizers_vq as tvq

    data, shards = pictures(folder / "pictures", images), 16
    torch.manual_seed(0)
    tvq.create("vqvae-tiny-64").save_pretrained(folder / "model")

    def command(out: Path, *more: str) -> list[str]:
        options = ["--out", str(out), "--shards", str(shards), "--device", "cpu", *more]
        return [*TVQ, "encode", str(folder / "model"), str(data), *options]

    subprocess.run(command(folder / "whole"), check=True, stdout=subprocess.DEVNULL)
    moments, killed, mark = random.Random(seed), 0, f"TVQ_KILLS={folder}"
    name, _, value = mark.partition("=")
    process = subprocess.Popen(command(folder / "killed", "--on", "ray"), env={**os.environ, name: value})
    due = 1
    while process.poll() is None:
        done = len(list((folder / "killed").glob("codes-*.parquet")))
        if killed < kills and due <= done < shards:
            killed += kill_workers(mark)
            due = done + moments.randint(1, 3)
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit("tvq encode --on ray failed")
    a, b = ({path.name: path.read_bytes() for path in (folder / part).iterdir()} for part in ("whole", "killed"))
    return killed, a == b


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a, b) or (a.is_floating_point() and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["train", "encode", "ray"])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, help="steps of training, or images to encode")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run, size = {"train": (train, 400), "encode": (encode, 3000), "ray": (ray, 2000)}[options.what]
        killed, same = run(Path(folder), options.kills, options.seed, options.size or size)
    print(f"{options.what}: killed {killed} times, result {'bitwise equal' if same else 'DIFFERS'}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
