"""Reading a folder of codes: memory and time against the codes' own bytes and one bare pass over their column.

    python -m tests.benchmarks.codes --rows 1000000

A folder of random codes is written; every figure is that of a forked process of its own. Linux only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.bench import parser, start
from tests.fuzz.harness import attempts
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.data.shards import CodesInfo, read_codes, shard_name
from tokenizers_vq.data.shards.files import write_shard
from tokenizers_vq.data.shards.info import write_info


def write(folder: Path, rows: int, a_shard: int) -> int:
    """Random codes of 16x16 positions and 16384 codes; returns the bytes of the codes alone."""
    layout, shards = CodeLayout(((16, 16),), sizes=(16384,)), -(-rows // a_shard)
    info = CodesInfo(fingerprint="a" * 64, layout=layout.to_dict(), precision="fp32", shards=shards)
    write_info(folder, info)
    draw = np.random.default_rng(0)
    for part in range(shards):
        numbers = range(rows * part // shards, rows * (part + 1) // shards)
        codes = draw.integers(0, 16384, (len(numbers), layout.length), dtype=np.uint16)
        table = {
            "codes": pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), layout.length),
            "fingerprint": pa.array([info.fingerprint] * len(numbers)),
            "key": pa.array([f"n{number % 1000:08d}/n{number % 1000:08d}_{number}.JPEG" for number in numbers]),
            "label": pa.array(np.array(numbers) % 1000),
        }
        write_shard(folder / shard_name(part, shards), pa.table(table), info.how(), {})
    return rows * layout.length * 2


def bare(folder: Path) -> None:
    """The least: decode the column of codes, shard by shard, and keep nothing."""
    for path in sorted(folder.glob("*.parquet")):
        for _ in pq.ParquetFile(path, memory_map=True).iter_batches(8192, columns=["codes"], use_threads=False):
            pass


def main() -> None:
    """Prints the table."""
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=200_000)
    options.add_argument("--shard", type=int, default=8192, help="rows a shard")
    given = options.parse_args()
    start(given)
    with tempfile.TemporaryDirectory() as name:
        size = write(Path(name), given.rows, given.shard)
        print(f"\n{given.rows:,} rows, {size / 2**20:.0f} MiB of codes (median of {given.repeats}, a process each)")
        reads: dict[str, Callable[[Path], object]] = {"a bare pass": bare, "read_codes": read_codes}
        for what, read in reads.items():
            found = [
                attempt
                for number in range(given.repeats)
                for attempt in attempts([number], lambda _: Path(name), read, (), seconds=600, memory=2**36)
            ]
            seconds, memory = (float(np.median([getattr(a, field) for a in found])) for field in ("seconds", "memory"))
            print(
                f"  {what:<32} {seconds:>8.2f} s {memory / 2**20:>8.0f} MiB {memory / size:>6.2f} of the codes' bytes"
            )


if __name__ == "__main__":
    main()
