"""The order of training: position -> (epoch, index), a pure function, so that resuming needs one number.

Position p counts images from the first of the run. Optimizer step s covers positions [sB, (s+1)B) of a global batch of
B; process r takes the r-th contiguous block of it, micro-batch m the m-th block of that. Neither the number of
processes nor of loader workers changes which images a step sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler


@lru_cache(maxsize=2)
def permutation(length: int, seed: int, epoch: int) -> Tensor:
    """The indices 0..length-1 in the order of one epoch, `(length,)` int64; pure in its arguments."""
    mixed = int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.randperm(length, generator=torch.Generator().manual_seed(mixed))


def place(position: int, length: int, seed: int) -> tuple[int, int]:
    """`(epoch, index)` of a position: every index once an epoch."""
    epoch, offset = divmod(position, length)
    return epoch, int(permutation(length, seed, epoch)[offset])


def micro_batch_size(batch_size: int, accumulate: int, world: int) -> int:
    """Images of one micro-batch in one process. Raises `ValueError` where the global batch does not divide."""
    if batch_size < 1 or accumulate < 1 or batch_size % (accumulate * world):
        raise ValueError(
            f"batch_size={batch_size} does not divide by {world} processes x accumulate={accumulate}; "
            f"take a multiple of {accumulate * world}"
        )
    return batch_size // (accumulate * world)


def positions(step: int, micro: int, *, batch_size: int, accumulate: int = 1, world: int = 1, rank: int = 0) -> range:
    """Positions of micro-batch `micro` (0-based) of optimizer step `step` in process `rank`."""
    size = micro_batch_size(batch_size, accumulate, world)
    first = step * batch_size + rank * (batch_size // world) + micro * size
    return range(first, first + size)


class MicroBatches(Sampler):
    """Endless `[(epoch, index), ...]` of one process's micro-batches, from optimizer step `start` on."""

    def __init__(
        self, length: int, *, batch_size: int, accumulate: int, seed: int, start: int, world: int, rank: int
    ) -> None:
        self.length, self.seed, self.start = length, seed, start
        self.batch_size, self.accumulate, self.world, self.rank = batch_size, accumulate, world, rank
        micro_batch_size(batch_size, accumulate, world)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.start
        while True:
            for micro in range(self.accumulate):
                block = positions(
                    step,
                    micro,
                    batch_size=self.batch_size,
                    accumulate=self.accumulate,
                    world=self.world,
                    rank=self.rank,
                )
                yield [place(position, self.length, self.seed) for position in block]
            step += 1
