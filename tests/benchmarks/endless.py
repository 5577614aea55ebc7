"""Seconds of the processor, and memory, up to the first step of a prior's run on 10 thousand to 100 million rows.

    python -m tests.benchmarks.endless --rows 10000 1000000 10000000 100000000

The shards of a folder are one shard under many names, so that 100 million rows cost a few MiB of disk. Each run is a
process of its own, `tvq-prior train` from its first import to its first step. Linux only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from tests.benchmarks.bench import parser, start
from tests.conftest import ROOT
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.data.shards import CodesInfo, shard_name
from tokenizers_vq.data.shards.files import write_shard
from tokenizers_vq.data.shards.info import LabelsInfo, write_info

SHARD = 8192
RUN = """
import resource, sys, time
begin = time.process_time()
from prior.recipe import load_recipe
from prior.training import train
imported = time.process_time()
small = ["model.network={kind: gpt, layers: 1, dim: 32, heads: 2, multiple: 16}", "steps=1", "batch_size=8", "ema=null",
         "image_every=0", "precision=fp32", "max_held_out=512"]
from pathlib import Path
import prior.training as training
class Stop(Exception): pass
step = training.PriorTask.step
def first(self, *given):
    found = step(self, *given)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print("figures", imported - begin, time.process_time() - imported, peak)
    raise Stop
training.PriorTask.step = first
try:
    train(load_recipe("gpt-tiny", sys.argv[1], small), Path(sys.argv[2]), device="cpu")
except Stop:
    pass
"""


def sparse(folder: Path, rows: int, side: int = 16, codes: int = 16384, classes: int = 1000) -> Path:
    """A folder of `rows` rows (a multiple of 8192, or fewer) of side x side codes, all shards one file."""
    each, shards = min(rows, SHARD), -(-rows // SHARD)
    layout = CodeLayout(((side, side),), sizes=(codes,))
    info = CodesInfo(
        fingerprint="a" * 64,
        layout=layout.to_dict(),
        precision="fp32",
        shards=shards,
        images=each * shards,
        broken={},
        rows=(each,) * shards,
        labels={"label": LabelsInfo(bare=0, highest=classes - 1)},
        label_names=tuple(f"class {number}" for number in range(classes)),
    )
    folder.mkdir(parents=True)
    write_info(folder, info)
    flat = np.random.default_rng(0).integers(0, codes, each * layout.length, dtype=np.uint16)
    table = {
        "codes": pa.FixedSizeListArray.from_arrays(pa.array(flat), layout.length),
        "fingerprint": pa.array([info.fingerprint] * each),
        "key": pa.array([f"n{row % 1000:08d}/n{row % 1000:08d}_{row}.JPEG" for row in range(each)]),
        "label": pa.array(np.arange(each) % classes),
    }
    write_shard(folder / shard_name(0, shards), pa.table(table), info.how(), {})
    for part in range(1, shards):
        os.link(folder / shard_name(0, shards), folder / shard_name(part, shards))
    return folder


def first_step(codes: Path, out: Path) -> tuple[float, float, int]:
    """Seconds of the imports, seconds from there to the first step, and the peak of memory in bytes."""
    command = [sys.executable, "-c", RUN, str(codes), str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    line = next((line for line in done.stdout.splitlines() if line.startswith("figures")), None)
    assert line is not None, done.stderr
    imports, seconds, peak = map(float, line.split()[1:])
    return imports, seconds, int(peak) * 1024


def main() -> None:
    """Prints the table."""
    options = parser(__doc__)
    options.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000, 10_000_000])
    given = options.parse_args()
    start(given)
    print(f"\n{'rows':>12} {'shards':>8} {'first step':>12} {'peak memory':>14} {'beyond the first':>18}")
    base = None
    with tempfile.TemporaryDirectory() as name:
        for rows in given.rows:
            codes = sparse(Path(name) / str(rows), rows)
            found = [first_step(codes, Path(name) / f"run-{rows}-{turn}") for turn in range(given.repeats)]
            seconds, peak = (float(np.median([run[place] for run in found])) for place in (1, 2))
            base = peak if base is None else base
            shards = len(list(codes.glob("*.parquet")))
            print(
                f"{rows:>12,} {shards:>8,} {seconds:>10.2f} s {peak / 2**20:>10.0f} MiB "
                f"{(peak - base) / 2**20:>14.0f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
