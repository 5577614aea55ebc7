"""Codes on disk: a folder of parquet shards, one row an image (or a view of one), and `codes.json` beside them.

One folder holds one layout and one fingerprint. A shard is written aside and renamed, so what exists is done: a run
killed at any moment and started again loses and doubles nothing.
"""

from tokenizers_vq.data.shards.files import shard_name
from tokenizers_vq.data.shards.info import INFO, CodesInfo, DamagedCodes
from tokenizers_vq.data.shards.reading import CodeShards, read_codes
from tokenizers_vq.data.shards.writing import Job, open_images, recorded_precision, write_codes, write_parts, write_rows

__all__ = [
    "INFO",
    "CodeShards",
    "CodesInfo",
    "DamagedCodes",
    "Job",
    "open_images",
    "read_codes",
    "recorded_precision",
    "shard_name",
    "write_codes",
    "write_parts",
    "write_rows",
]
