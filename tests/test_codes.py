"""CodeLayout: every layout round-trips, and counts what it holds."""

from __future__ import annotations

import math

import numpy as np
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


@pytest.mark.parametrize(
    "arguments",
    [
        ((), 1, ()),
        (((0, 2),), 1, (4,)),
        (((2, 2),), 2, (4,)),
        (((1, 1, 1),), 1, (4,)),
        (((),), 1, (4,)),
        (((2, 2),), 0, ()),
        (((2, 2),), -1, (4,)),
        (((2, 2),), 10**18, (4,)),
        (((2, 2),), 1, (0,)),
        (((2, 2),), 1, (2**63 + 1,)),
        (((10**9, 10**9),), 1, (4,)),
        (((2.0, 2),), 1, (4,)),
        (((True, 2),), 1, (4,)),
        ((("2", "2"),), 1, (4,)),
        ("ab", 1, (4,)),
        (None, 1, (4,)),
        (5, 1, (4,)),
        (((2, 2),), None, (4,)),
        (((2, 2),), 1.0, (4,)),
        (((2, 2),), 1, None),
        (((2, 2),), 1, 4),
        (((2, 2),), 1, (None,)),
        (((2, 2),), 1, ("4",)),
    ],
)
def test_impossible_layouts_are_refused(arguments: tuple) -> None:
    with pytest.raises(ValueError, match=r"grids|need|sizes|levels|layout") as error:
        CodeLayout(*arguments)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    with pytest.raises(ValueError):
        CodeLayout.from_dict(dict(zip(("grids", "levels", "sizes"), arguments, strict=True)))


@pytest.mark.parametrize("data", [None, [], 5, "grids", {}, {"grids": [[2, 2]], "sizes": [4]}, {"levels": 1}])
def test_what_is_no_layout_is_refused(data: object) -> None:
    with pytest.raises(ValueError, match="grids, levels and sizes"):
        CodeLayout.from_dict(data)  # type: ignore[arg-type]


LAYOUTS = [CodeLayout(((4, 3),), 1, (8,)), CodeLayout(((1,), (2, 2)), 2, (8, 8, 8, 8))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_codes_of_no_images(layout: CodeLayout) -> None:
    tokens = torch.zeros(0, layout.length, dtype=torch.int64)
    codes = layout.unflatten(tokens)
    parts = codes if isinstance(codes, tuple) else (codes,)
    assert [tuple(part.shape) for part in parts] == [
        (0, *grid, *([2] if layout.levels == 2 else [])) for grid in layout.grids
    ]
    assert layout.flatten(codes).shape == (0, layout.length)
    assert [len(row) for row in layout.split(codes)] == [0] * len(layout.sizes)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, np.uint64, np.int16, np.int64])
def test_integers_of_any_width_are_codes(layout: CodeLayout, kind: type) -> None:
    array = (np.arange(2 * layout.length) % 8).astype(kind).reshape(2, -1)
    wanted = layout.unflatten(torch.from_numpy(array.astype(np.int64)))
    for tokens in (array, torch.from_numpy(array)):
        codes = layout.unflatten(tokens)
        for got, right in zip(*(c if isinstance(c, tuple) else (c,) for c in (codes, wanted)), strict=True):
            assert got.dtype == torch.int64 and torch.equal(got, right)
    parts = tuple(part.numpy().astype(kind) for part in (wanted if isinstance(wanted, tuple) else (wanted,)))
    assert layout.flatten(parts).tolist() == array.tolist()  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "value",
    [None, 5, "codes", [], (), [[1, 2]], torch.tensor(1), torch.zeros(2), np.zeros(3), object(), {"a": 1}, [None]],
)
def test_no_codes_are_refused(layout: CodeLayout, value: object) -> None:
    for method in (layout.flatten, layout.unflatten, layout.split):
        with pytest.raises(ValueError) as error:
            method(value)  # type: ignore[operator]
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64])
def test_floats_and_bools_are_no_codes(dtype: torch.dtype) -> None:
    layout = LAYOUTS[0]
    for method, shape in ((layout.unflatten, (2, 12)), (layout.flatten, (2, 4, 3)), (layout.split, (2, 4, 3))):
        with pytest.raises(ValueError, match=f"codes must be int64, got {dtype}"):
            method(torch.zeros(shape, dtype=dtype))  # type: ignore[operator]


def test_grids_of_several_numbers_of_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[\(2, 1, 2\), \(3, 2, 2, 2\)\] do not fit"):
        LAYOUTS[1].flatten((torch.zeros(2, 1, 2).long(), torch.zeros(3, 2, 2, 2).long()))


def test_tokens_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \(B, 4\)"):
        CodeLayout(((2, 2),), 1, (4,)).unflatten(torch.zeros(1, 5))
