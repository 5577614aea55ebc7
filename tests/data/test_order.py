"""The order is a pure function of (seed, position): complete, restartable, the same for any number of processes."""

from __future__ import annotations

from itertools import islice

import pytest

from tokenizers_vq.data.order import MicroBatches, permutation, place, positions


def _batches(steps: int, accumulate: int = 1, start: int = 0, world: int = 1, rank: int = 0, length: int = 10):
    sampler = MicroBatches(length, batch_size=8, accumulate=accumulate, seed=3, start=start, world=world, rank=rank)
    return list(islice(sampler, steps * accumulate))


def test_every_index_once_an_epoch() -> None:
    for epoch in range(3):
        places = [place(position, 10, seed=3) for position in range(10 * epoch, 10 * epoch + 10)]
        assert {found for found, _ in places} == {epoch}
        assert sorted(index for _, index in places) == list(range(10))
    orders = {tuple(permutation(10, seed, epoch).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_starts_anywhere() -> None:
    assert _batches(9)[4:] == _batches(5, start=4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_see_the_batches_of_one(accumulate: int) -> None:
    whole = _batches(6)
    halves = [_batches(6, accumulate, world=2, rank=rank) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        parts = [half[step * accumulate : (step + 1) * accumulate] for half in halves]
        assert [found for part in parts for micro in part for found in micro] == batch


def test_micro_batches_split_a_process_block() -> None:
    assert positions(2, 1, batch_size=8, accumulate=2, world=2, rank=1) == range(22, 24)
    with pytest.raises(
        ValueError, match="batch_size=8 does not divide by 3 processes x accumulate=1; take a multiple of 3"
    ):
        positions(0, 0, batch_size=8, world=3)
