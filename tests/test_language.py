"""Codes of every layout become ids of a vocabulary and come back; ids of no whole image are refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.language import LanguageModelIds

layouts = st.builds(
    lambda grids, levels, seed: CodeLayout(
        tuple(grids), levels, tuple(2 + (seed * 31 + stream * 7) % 97 for stream in range(len(grids) * levels))
    ),
    st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=2).map(tuple), min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(0, 1000),
)


def _codes(layout: CodeLayout, images: int = 2):
    sizes = torch.tensor(layout.sizes)[layout.streams()]
    return layout.unflatten((torch.rand(images, layout.length) * sizes).long())


def _parts(codes) -> tuple[torch.Tensor, ...]:
    return codes if isinstance(codes, tuple) else (codes,)


@settings(deadline=None, max_examples=60)
@given(layouts, st.integers(3, 500), st.booleans(), st.booleans(), st.sampled_from([None, (), 0, (0, 1)]))
def test_there_and_back(layout: CodeLayout, offset: int, shared: bool, breaks: bool, begin) -> None:
    codes = _codes(layout)
    offsets = [offset] * len(layout.sizes) if shared else offset
    mapping = LanguageModelIds(layout, offsets, begin, 1, 2 if breaks else None)
    ids = mapping.to_ids(codes)
    assert ids.dtype == torch.int64 and ids.shape == (2, mapping.length) and int(ids.max()) < mapping.vocabulary
    back = mapping.to_codes(ids)
    assert isinstance(back, tuple) == isinstance(codes, tuple)
    assert all(torch.equal(ours, given) for ours, given in zip(_parts(back), _parts(codes), strict=True))
    one = tuple(part[0] for part in codes) if isinstance(codes, tuple) else codes[0]
    assert torch.equal(mapping.to_ids(one), ids[0])
    again = mapping.to_codes(ids[0].tolist())
    assert all(torch.equal(ours, given) for ours, given in zip(_parts(again), _parts(one), strict=True))
    rows = sum(grid[0] if len(grid) == 2 else 1 for grid in layout.grids)
    assert mapping.length == layout.length + len(mapping.begin) + 1 + breaks * rows
    assert (ids == 2).sum() == 2 * breaks * rows
    if not shared:  # an id alone tells its stream
        tokens = ids[:, (ids >= offset).all(0)]
        edges = torch.tensor([ids_.start for ids_ in mapping.ranges])
        assert torch.equal(torch.bucketize(tokens, edges, right=True) - 1, layout.streams().expand(2, -1))


def test_rows_end_as_emu3_ends_them() -> None:
    layout = CodeLayout(((2, 3),), 1, (32768,))
    mapping = LanguageModelIds(layout, 151854, begin=[151852, 151851], end=[151847, 151853], row_break=151846)
    ids = mapping.to_ids(torch.arange(6).view(1, 2, 3))[0].tolist()
    rows = [151854, 151855, 151856, 151846, 151857, 151858, 151859, 151846]
    assert ids == [151852, 151851, *rows, 151847, 151853]
    assert mapping.vocabulary == 151854 + 32768


def test_levels_and_grids_have_ranges_of_their_own() -> None:
    layout = CodeLayout(((1, 1), (1, 2)), 2, (4, 5, 6, 7))
    mapping = LanguageModelIds(layout, 10)
    assert mapping.ranges == (range(10, 14), range(14, 19), range(19, 25), range(25, 32))
    assert mapping.to_ids(layout.unflatten(torch.zeros(1, 6).long())).tolist() == [[10, 14, 19, 25, 19, 25]]


@pytest.mark.parametrize("layout", [CodeLayout(((2, 2),), 1, (8,)), CodeLayout(((1,), (2, 2)), 2, (8, 8, 8, 8))])
def test_no_images_have_no_ids(layout: CodeLayout) -> None:
    mapping = LanguageModelIds(layout, 10, 1, 2, 3)
    codes = layout.unflatten(torch.zeros(0, layout.length).long())
    ids = mapping.to_ids(codes)
    assert ids.shape == (0, mapping.length) and ids.dtype == torch.int64
    back = mapping.to_codes(ids)
    assert [part.shape for part in _parts(back)] == [part.shape for part in _parts(codes)]


def test_codes_of_shards_are_taken() -> None:
    mapping = LanguageModelIds(LAYOUT, 10, 1, 2, 3)
    codes = torch.arange(8).view(2, 2, 2)
    ids = mapping.to_ids(codes)
    assert torch.equal(mapping.to_ids(codes.numpy().astype("uint16")), ids)  # type: ignore[arg-type]
    assert torch.equal(mapping.to_codes(ids.numpy().astype("uint16")), codes)  # type: ignore[arg-type]


LAYOUT = CodeLayout(((2, 2),), 1, (8,))
IDS = [1, 10, 11, 3, 12, 13, 3, 2]


@pytest.mark.parametrize(
    "ids, problem",
    [
        (IDS[1:], r"must be \(B, 8\) or \(8,\) for one whole image of this layout, got \(7,\)"),
        ([4, *IDS[1:]], "id 4 at place 0 of image 0, where begin 1 must stand"),
        ([*IDS[:3], 12, *IDS[4:]], "id 12 at place 3 of image 0, where row_break 3 must stand"),
        ([*IDS[:-1], 3], "id 3 at place 7 of image 0, where end 2 must stand"),
        ([IDS, [1, 10, 18, *IDS[3:]]], "id 18 at place 2 of image 1 is no code: there stand 10 to 17"),
        ([*IDS[:5], 9, *IDS[6:]], "id 9 at place 5 of image 0 is no code"),
        (torch.zeros(1, 8), "must be integers, got torch.float32"),
        ([], r"must be \(B, 8\) or \(8,\)"),
        ("ids", "ids must be rows of integers"),
        (None, "ids must be rows of integers"),
        ([[1], [1, 2]], "ids must be rows of integers"),
        ([2**70] * 8, "ids must be rows of integers"),
    ],
)
def test_ids_of_no_image_are_refused(ids, problem: str) -> None:
    mapping = LanguageModelIds(LAYOUT, 10, 1, 2, 3)
    assert torch.equal(mapping.to_codes(IDS), torch.tensor([[0, 1], [2, 3]]))
    with pytest.raises(ValueError, match=problem) as error:
        mapping.to_codes(ids)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "codes, problem",
    [
        (torch.full((1, 2, 2), 8), "code 8 at place 0 of image 0 is none of 8"),
        (torch.full((2, 2), -1), "code -1 at place 0"),
        (torch.zeros(1, 2, 3).long(), "do not fit this layout"),
        (torch.zeros(1, 2, 2), "codes must be int64, got torch.float32"),
        (torch.zeros(1, 2, 2).bool(), "codes must be int64, got torch.bool"),
        ((), "do not fit this layout"),
        (None, "codes must be integer tensors"),
    ],
)
def test_codes_of_another_layout_are_refused(codes: torch.Tensor, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        LanguageModelIds(LAYOUT, 10, 1, 2, 3).to_ids(codes)


@pytest.mark.parametrize(
    "arguments, problem",
    [
        ((10, 12), "special id 12 lies among the codes' ids 10 to 17"),
        ((10, 1, 2, 2), "row_break 2 is in begin or end too"),
        ((-1,), "ids must be 0 or more, got -1"),
        ((10, -4), "got -4"),
        (([10, 20],), "one for each of 1 streams, got 2"),
        ((None,), "one for each of 1 streams, got 0"),
        (("a",), "must be whole numbers, got 'a'"),
        ((1.5,), "must be whole numbers, got 1.5"),
        ((10, 1, 2, 0.5), "must be whole numbers, got 0.5"),
        ((2**63 - 7,), "ids are int64"),
    ],
)
def test_impossible_maps_are_refused(arguments: tuple, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        LanguageModelIds(LAYOUT, *arguments)
