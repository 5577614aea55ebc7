"""Texts as bags of hashed pieces of their bytes (Bojanowski et al., arXiv 1607.04606): any language, no vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

FACTOR = 1_000_003
"""of the rolling hash: a prime beyond all tables"""


def byte_rows(texts: Sequence[str], length: int) -> Tensor:
    """UTF-8 as int64 `(B, length)`, -1 behind a text's end; longer texts are cut. On the CPU."""
    rows = torch.full((len(texts), length), -1)
    for row, text in zip(rows, texts, strict=True):
        kept = list(text.encode()[:length])
        row[: len(kept)] = torch.tensor(kept, dtype=torch.int64)
    return rows


class NgramBag(nn.Module):
    """Bytes `(B, L)`, -1 for none -> `(B, width)`: all runs of 1 to `longest` bytes, each a vector of the table.

    A run's vector is found by a hash, so that some share one. The sum goes over the root of their number: of vectors
    drawn from N(0, 1) it is again one. No byte at all is the vector 0.
    """

    def __init__(self, width: int, longest: int, buckets: int) -> None:
        super().__init__()
        self.longest, self.buckets = longest, buckets
        self.table = nn.Embedding(buckets, width)

    def forward(self, rows: Tensor) -> Tensor:
        total, count = self.table.weight.new_zeros(len(rows), self.table.embedding_dim), rows.new_zeros(len(rows), 1)
        hashes, there = torch.zeros_like(rows), torch.ones_like(rows, dtype=torch.bool)
        for n in range(min(self.longest, rows.shape[1])):
            end = rows.shape[1] - n
            there = there[:, :end] & (rows[:, n:] >= 0)
            # Below 2^32 before each step, so that none overflows; runs of unlike lengths fall apart by the + 1.
            hashes = (hashes[:, :end] * FACTOR + rows[:, n:].clamp(min=0) + 1) % 2**32
            vectors = self.table(hashes % self.buckets) * there[..., None]
            total, count = total + vectors.sum(dim=1), count + there.sum(dim=1, keepdim=True)
        return total / count.clamp(min=1).sqrt()
