"""CodeLayout: every layout round-trips, and counts what it holds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizers_vq.codes import CodeLayout

grids = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=2).map(tuple), min_size=1, max_size=3)


@settings(deadline=None, max_examples=50)
@given(grids, st.integers(1, 3), st.integers(0, 2**31))
def test_flatten_and_unflatten_are_inverse(grids: list, levels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = tuple(int(torch.randint(2, 99, (), generator=generator)) for _ in range(len(grids) * levels))
    layout = CodeLayout(tuple(grids), levels, sizes)
    tokens = torch.randint(0, 2, (3, layout.length), generator=generator)
    codes = layout.unflatten(tokens)
    assert isinstance(codes, tuple) == (len(grids) > 1)
    assert torch.equal(layout.flatten(codes), tokens)
    positions, streams = layout.positions(), layout.streams()
    assert positions.shape == (layout.length, 4) == (len(set(map(tuple, positions.tolist()))), 4)
    assert [row.shape[1] for row in layout.split(codes)] == torch.bincount(streams, minlength=len(sizes)).tolist()
    assert layout.bits == pytest.approx(sum(math.log2(sizes[stream]) for stream in streams.tolist()))
    assert CodeLayout.from_dict(layout.to_dict()) == layout


def test_order_is_grids_then_raster_then_levels() -> None:
    layout = CodeLayout(((1, 2), (2, 2)), 2, (4, 5, 6, 7))
    assert layout.positions()[:6].tolist() == [
        [0, 0, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 1, 0],
        [0, 0, 1, 1],
        [1, 0, 0, 0],
        [1, 0, 0, 1],
    ]
    coarse, fine = layout.unflatten(torch.arange(12)[None])
    assert coarse.tolist() == [[[[0, 1], [2, 3]]]] and fine[0, 1, 0].tolist() == [8, 9]


@pytest.mark.parametrize("shape", [(2, 3, 3), (2, 4, 3, 1), (2, 12)])
def test_codes_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    layout = CodeLayout(((4, 3),), 1, (8,))
    with pytest.raises(ValueError, match="do not fit this layout"):
        layout.flatten(torch.zeros(shape, dtype=torch.int64))


def test_impossible_layouts_are_refused() -> None:
    for arguments in [((), 1, ()), (((0, 2),), 1, (4,)), (((2, 2),), 2, (4,)), (((1, 1, 1),), 1, (4,))]:
        with pytest.raises(ValueError, match=r"grids must be|need"):
            CodeLayout(*arguments)
    with pytest.raises(ValueError, match=r"must be \(B, 4\)"):
        CodeLayout(((2, 2),), 1, (4,)).unflatten(torch.zeros(1, 5))
