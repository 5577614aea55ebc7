"""Codes as ids of a language model's vocabulary, and back."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from itertools import accumulate
from operator import index

import torch
from torch import Tensor

from tokenizers_vq.codes import CodeLayout, Codes, whole_numbers

Ids = int | Sequence[int]


class LanguageModelIds:
    """One image as a row of M ids: `begin`, the codes in `CodeLayout`'s flat order, a break after every row, `end`.

    Every stream (grid x level) has a range of ids of its own, one after the other from `offset`, so that an id alone
    tells grid, level and code: stream s begins at `offset + sum(sizes[:s])`. Several numbers in `offset`, one a stream,
    place the ranges elsewhere; equal ones share a range, as levels with one codebook may.

    Emu3 breaks after every row, the last one too, and closes with two ids (its processing_emu3.py), so that, h and w
    being the ids of the text that says the grid, its images are
    `LanguageModelIds(layout, 151854, begin=[151852, *h_and_w, 151851], end=[151847, 151853], row_break=151846)`.
    Chameleon has no breaks: `row_break=None`.
    """

    def __init__(
        self,
        layout: CodeLayout,
        offset: Ids,
        begin: Ids | None = None,
        end: Ids | None = None,
        row_break: int | None = None,
    ) -> None:
        """`offset`: first id of the codes, or of each stream's. `begin`, `end`: id or ids in turn around the image.
        `row_break`: id after every row of every grid (a one-dimensional grid is one row).

        Raises `ValueError` for negative ids, a special id among those of the codes, and a break that begins or ends.
        """
        sizes = layout.sizes
        firsts = _several(offset)
        if firsts and not isinstance(offset, Sequence):
            firsts = tuple(firsts[0] + before for before in accumulate(sizes[:-1], initial=0))
        if len(firsts) != len(sizes):
            raise ValueError(f"offset needs one number, or one for each of {len(sizes)} streams, got {len(firsts)}")
        self.layout = layout
        self.ranges = tuple(range(first, first + size) for first, size in zip(firsts, sizes, strict=True))
        """the ids of each stream, in the order of `layout.sizes`"""
        self.begin, self.end = _several(begin), _several(end)
        self.row_break = None if row_break is None else _several(row_break)[0]
        around = (*self.begin, *self.end)
        special = around if row_break is None else (*around, row_break)
        if min(*firsts, *special, 0) < 0:
            raise ValueError(f"ids must be 0 or more, got {min(*firsts, *special, 0)}: move the offset or special ids")
        for value in special:
            hit = next((ids for ids in self.ranges if value in ids), None)
            if hit is not None:
                raise ValueError(f"special id {value} lies among the codes' ids {_span(hit)}: move it, or the offset")
        if row_break in around:
            raise ValueError(f"row_break {row_break} is in begin or end too: give it an id of its own")
        self.vocabulary = 1 + max(*(ids.stop - 1 for ids in self.ranges), *special, 0)
        """smallest vocabulary that holds every id"""
        if self.vocabulary > 2**63:
            raise ValueError(f"ids are int64, but the largest would be {self.vocabulary - 1}: use a smaller offset")
        codes, self._is_code = _places(layout, row_break is not None)
        self._firsts = torch.tensor([ids.start for ids in self.ranges])[codes]
        self._sizes = torch.tensor(sizes)[codes]
        row = torch.zeros(len(self._is_code), dtype=torch.int64)
        row[~self._is_code] = -1 if row_break is None else row_break
        ends = [torch.tensor(ids, dtype=torch.int64) for ids in (self.begin, self.end)]
        self._row = torch.cat([ends[0], row, ends[1]])
        self._is_code = torch.cat([ends[0] < 0, self._is_code, ends[1] < 0])
        self.length = len(self._row)
        """M, the ids of one image"""

    def to_ids(self, codes: Codes) -> Tensor:
        """int64 codes as the layout has them, `(B, *grid)` -> int64 `(B, M)`; one image's without B -> `(M,)`.

        Raises `ValueError` for codes of another shape or type, or out of range.
        """
        given = whole_numbers(codes)
        parts = given if isinstance(given, tuple) else (given,)
        single = bool(parts) and parts[0].ndim == len(self.layout.grids[0]) + (self.layout.levels > 1)
        tokens = self.layout.flatten(tuple(part[None] for part in parts) if single else parts)
        sizes = self._sizes.to(tokens.device)
        wrong = (tokens < 0) | (tokens >= sizes)
        if wrong.any():
            image, place = (int(at) for at in wrong.nonzero()[0])
            raise ValueError(
                f"code {int(tokens[image, place])} at place {place} of image {image} is none of "
                f"{int(sizes[place])} (0 to {int(sizes[place]) - 1}): give this layout's own codes"
            )
        ids = self._row.to(tokens.device).repeat(len(tokens), 1)
        ids[:, self._is_code.to(tokens.device)] = tokens + self._firsts.to(tokens.device)
        return ids[0] if single else ids

    def to_codes(self, ids: Tensor | Sequence[int]) -> Codes:
        """Integer `(B, M)`, or `(M,)` as tensor or list, of whole images -> codes; the inverse of `to_ids`.

        Raises `ValueError` for another length, an id missing where begin, end or a break stands, and other ids.
        """
        try:
            given = torch.as_tensor(ids)
        except (TypeError, ValueError, RuntimeError) as error:  # words, ragged lists, numbers beyond 64 bits
            raise ValueError(f"ids must be rows of integers: {' '.join(str(error).split())}") from None
        if given.ndim not in (1, 2) or given.shape[-1] != self.length:
            raise ValueError(
                f"ids must be (B, {self.length}) or ({self.length},) for one whole image of this layout, "
                f"got {tuple(given.shape)}"
            )
        if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
            raise ValueError(f"ids must be integers, got {given.dtype}")
        rows = torch.atleast_2d(given.to(torch.int64))
        is_code = self._is_code.to(rows.device)
        wrong = (rows != self._row.to(rows.device)) & ~is_code
        if wrong.any():
            image, place = (int(at) for at in wrong.nonzero()[0])
            raise ValueError(
                f"id {int(rows[image, place])} at place {place} of image {image}, where {self._what(place)} "
                f"{int(self._row[place])} must stand"
            )
        tokens = rows[:, is_code] - self._firsts.to(rows.device)
        wrong = (tokens < 0) | (tokens >= self._sizes.to(rows.device))
        if wrong.any():
            image, number = (int(at) for at in wrong.nonzero()[0])
            place = int(is_code.nonzero()[number])
            first = int(self._firsts[number])
            raise ValueError(
                f"id {int(rows[image, place])} at place {place} of image {image} is no code: there stand "
                f"{_span(range(first, first + int(self._sizes[number])))}"
            )
        codes = self.layout.unflatten(tokens)
        if given.ndim == 2:
            return codes
        return tuple(part[0] for part in codes) if isinstance(codes, tuple) else codes[0]

    def _what(self, place: int) -> str:
        if place < len(self.begin):
            return "begin"
        return "end" if place >= self.length - len(self.end) else "row_break"


def _several(ids: Ids | None) -> tuple[int, ...]:
    try:
        return () if ids is None else tuple(map(index, ids if isinstance(ids, Sequence) else (ids,)))
    except TypeError:
        raise ValueError(f"an id, or several in a list, must be whole numbers, got {reprlib.repr(ids)}") from None


def _span(ids: range) -> str:
    return f"{ids.start} to {ids.stop - 1}"


def _places(layout: CodeLayout, breaks: bool) -> tuple[Tensor, Tensor]:
    """The stream of every token, `(N,)`, and where tokens stand among the breaks, bool `(N + breaks,)`."""
    is_code: list[bool] = []
    for grid in layout.grids:
        rows, width = grid if len(grid) == 2 else (1, grid[0])
        is_code += ([True] * (width * layout.levels) + [False] * breaks) * rows
    return layout.streams(), torch.tensor(is_code)
