"""The order of training: position -> (epoch, index), a pure function, so that resuming needs one number.

Position p counts images from the first of the run. Optimizer step s covers positions [sB, (s+1)B) of a global batch of
B; process r takes the r-th contiguous block of it, micro-batch m the m-th block of that. Neither the number of
processes nor of loader workers changes which images a step sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler


@lru_cache(maxsize=2)
def permutation(length: int, seed: int, epoch: int, *more: int) -> Tensor:
    """The indices 0..length-1 in the order of one epoch, `(length,)` int64; pure in its arguments."""
    mixed = int(np.random.SeedSequence((seed, epoch, *more)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.randperm(length, generator=torch.Generator().manual_seed(mixed))


class Blocks(NamedTuple):
    """How more indices than fit into memory are shuffled: `size` neighbours are a block; the blocks of all come in
    random order, `together` of them at a time, and all indices of these are shuffled as one.

    An epoch still has every index once. Indices of one block come near each other, in random order among those of
    `together` blocks from all over.
    """

    size: int
    together: int


def place(position: int, length: int, seed: int, blocks: Blocks | None = None) -> tuple[int, int]:
    """`(epoch, index)` of a position: every index once an epoch; in `blocks`, without them all shuffled as one."""
    epoch, offset = divmod(position, length)
    if blocks is None or length <= blocks.size * blocks.together:
        return epoch, int(permutation(length, seed, epoch)[offset])
    order, ends, starts = _order_of_blocks(length, seed, epoch, blocks)
    window = int(np.searchsorted(starts, offset, side="right")) - 1
    inner = int(
        permutation(int(starts[window + 1] - starts[window]), seed, epoch, window)[offset - int(starts[window])]
    )
    at = int(starts[window]) + inner
    number = int(np.searchsorted(ends, at, side="right"))
    within = at - (int(ends[number - 1]) if number else 0)
    return epoch, int(order[number]) * blocks.size + within


@lru_cache(maxsize=2)
def _order_of_blocks(length: int, seed: int, epoch: int, blocks: Blocks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blocks in the order of an epoch; how many indices there are up to the end of each; where those begin that are
    shuffled together.
    """
    size = blocks.size
    count = -(-length // size)
    order = permutation(count, seed, epoch).numpy()
    sizes = np.full(count, size)
    sizes[order == count - 1] = length - (count - 1) * size
    ends, windows = np.cumsum(sizes), -(-count // blocks.together)
    edges = np.arange(1, windows + 1) * count // windows  # windows of nearly one size: the last would else be a rest
    return order, ends, np.concatenate([[0], ends[edges - 1]])


def evenly(count: int, wanted: int, together: int) -> np.ndarray:
    """About `wanted` of the numbers 0 to count - 1, int64 rising: runs of `together` neighbours, evenly spread."""
    if wanted >= count:
        return np.arange(count)
    whole = max(1, count // together)
    runs = min(-(-wanted // together), whole)
    starts = np.arange(runs, dtype=np.int64) * whole // runs * together
    found: np.ndarray = (starts[:, None] + np.arange(min(together, wanted))).reshape(-1)
    return found[found < count]


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
        self,
        length: int,
        *,
        batch_size: int,
        accumulate: int,
        seed: int,
        start: int,
        world: int,
        rank: int,
        blocks: Blocks | None = None,
    ) -> None:
        self.length, self.seed, self.start, self.blocks = length, seed, start, blocks
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
                yield [place(position, self.length, self.seed, self.blocks) for position in block]
            step += 1
