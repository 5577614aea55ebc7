"""The order is a pure function of (seed, position): complete, restartable, the same for any number of processes."""

from __future__ import annotations

from itertools import islice

import pytest

from tokenizers_vq.data.order import Blocks, MicroBatches, permutation, place, positions


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


@pytest.mark.parametrize("length", [1, 31, 96, 97, 1000, 1003])
def test_in_blocks_every_index_comes_once_an_epoch(length: int) -> None:
    blocks = Blocks(8, 4)
    for epoch in range(3):
        places = [place(epoch * length + offset, length, 3, blocks) for offset in range(length)]
        assert {found for found, _ in places} == {epoch}
        assert sorted(index for _, index in places) == list(range(length))
        if length <= 32:  # as many as are shuffled together: the order of ever
            assert places == [place(epoch * length + offset, length, 3) for offset in range(length)]
    if length < 1000:
        return
    order = [index for _, index in places]
    seen = [{index // 8 for index in order[at : at + 20]} for at in range(0, length - 20, 20)]
    assert all(2 <= len(found) <= 8 for found in seen)  # few blocks at a time, and mixed
    others = [[place(offset, length, seed, blocks)[1] for offset in range(length)] for seed in (4, 5)]
    assert order != others[0] != others[1]


def test_in_blocks_a_billion_indices_need_no_memory_of_their_own() -> None:
    blocks = Blocks(8192, 64)
    batches = MicroBatches(10**9, batch_size=64, accumulate=1, seed=0, start=10**6, world=1, rank=0, blocks=blocks)
    found = next(iter(batches))
    assert len({index for _, index in found}) == 64 and found == next(iter(batches))
