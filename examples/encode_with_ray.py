"""Encode a data set on a Ray cluster, or on all cores of this machine.

python examples/encode_with_ray.py MODEL PHOTOS OUT [WORKERS]

`BatchEncoder` is a callable from columns to columns, so Ray Data takes it as it is: one instance a worker, which loads
the tokenizer once. Every row carries the tokenizer's fingerprint. Needs: pip install "tokenizers-vq[ray]"
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import tokenizers_vq as tvq


def main(model: str, photos: str, out: str, workers: str = "2") -> None:
    if importlib.util.find_spec("ray") is None:
        print('skipped: Ray is not installed; pip install "tokenizers-vq[ray]"')
        return
    import ray.data

    # Paths on a shared file system or s3://, gs://; relative ones would be looked for where the workers run.
    photos = photos if "://" in photos else str(Path(photos).resolve())
    model = str(Path(model).resolve()) if Path(model).exists() else model

    codes = (
        ray.data.read_binary_files(photos, include_paths=True)  # columns bytes and path
        .map_batches(
            tvq.BatchEncoder,
            fn_constructor_args=[model],
            fn_constructor_kwargs={"image_column": "bytes", "on_broken": "skip"},
            batch_size=32,
            batch_format="numpy",
            concurrency=int(workers),  # for GPUs also num_gpus=1
        )
        .drop_columns(["bytes"])
    )
    codes.write_parquet(str(Path(out).resolve()))

    table = ray.data.read_parquet(str(Path(out).resolve()))
    print(f"{table.count()} images in {out}, columns {', '.join(table.columns())}")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
