"""Random draws an image, by its key and the step: neither processes nor their number matter."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import torch


def generators(record: Any, salt: str = "", device: torch.device | str = "cpu") -> Iterator[torch.Generator]:
    """One an image of a `losses.record.Record`. Where it has no keys, they are seeded by torch's own generator.

    `salt` parts the draws of one image and step from each other.
    """
    keys = record.batch.keys
    for i in range(len(record.images)):
        generator = torch.Generator(device)
        seed = zlib.crc32(f"{record.step} {keys[i]}{salt}".encode()) if keys else int(torch.randint(2**31, ()))
        yield generator.manual_seed(seed)
