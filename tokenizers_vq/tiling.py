"""Images too large for memory, encoded and decoded in overlapping tiles.

Every tile brings context on each side, a quarter of its side, which is cropped again. Where the network's receptive
field fits into it, the result is that of the whole image; attention and group normalisation see the whole tile only,
so with them the result is an approximation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from torch import Tensor

from tokenizers_vq.networks import blocks, transformer
from tokenizers_vq.tokenizer import Tokenizer

Tile = int | Literal["auto"] | None
MOST = 1024
"""largest side in pixels that `auto` computes at once where it need not: a bound on memory"""


class Span(NamedTuple):
    """A tile along one axis, in codes: computed from `low` to `high`, kept from `first` to `last`."""

    low: int
    high: int
    first: int
    last: int


def spans(length: int, tile: int) -> Iterator[Span]:
    """Tiles of `tile` codes (fewer only where `length` is) whose kept parts cover `length` once."""
    context = tile // 4
    step = tile - 2 * context
    for first in range(0, length, step):
        low = min(max(first - context, 0), max(length - tile, 0))
        yield Span(low, min(low + tile, length), first, min(first + step, length))


def auto_tile(tokenizer: Tokenizer, height: int, width: int) -> int | None:
    """The tile that `auto` takes for images of this size, or None where they are computed whole.

    Every tile computes about four times the pixels that it keeps. That pays where there is attention over all
    positions, whose work grows with the square of the pixels: tiles are twice as large as the images that the tokenizer
    is made for (256 pixels at least, 1024 at most), for images of four times their side and more. Other networks are
    tiled to bound their memory alone, from 2048 pixels on, in tiles of 1024. Codes that are no single 2-D grid are
    never tiled.
    """
    grids = tokenizer.code_layout().grids
    if len(grids) != 1 or len(grids[0]) != 2:
        return None
    made_for, largest = max(tokenizer.config.size), max(height, width)
    stride = made_for // max(grids[0])
    tile = MOST
    if any(isinstance(module, (blocks.Attention, transformer.Attention)) for module in tokenizer.modules()):
        tile = min(max(2 * made_for, 256), MOST)
    tile = -(-tile // (4 * stride)) * 4 * stride
    return tile if largest >= min(4 * tile, 2 * MOST) else None


def encode_tiled(tokenizer: Tokenizer, images: Tensor, tile: int) -> Tensor:
    """`Tokenizer.encode` of `(B, C, H, W)` in tiles of `tile` pixels -> codes `(B, h, w)` or `(B, h, w, L)`.

    Raises `ValueError` for a tile that the stride does not divide and for codes that are no single 2-D grid.
    """
    side = _side(tokenizer, tile)
    stride = tile // side
    height, width = tokenizer.code_layout(images.shape[-2], images.shape[-1]).grids[0]
    result: Tensor | None = None
    for y in spans(height, side):
        for x in spans(width, side):
            part = images[..., y.low * stride : y.high * stride, x.low * stride : x.high * stride]
            codes = tokenizer.encode(part)
            assert isinstance(codes, Tensor)
            if result is None:
                result = codes.new_empty(len(codes), height, width, *codes.shape[3:])
            inside = codes[:, y.first - y.low : y.last - y.low, x.first - x.low : x.last - x.low]
            result[:, y.first : y.last, x.first : x.last] = inside
    assert result is not None
    return result


def decode_tiled(tokenizer: Tokenizer, codes: Tensor, tile: int) -> Tensor:
    """`Tokenizer.decode` of codes `(B, h, w)` or `(B, h, w, L)` in tiles of `tile` pixels -> `(B, C, H, W)`.

    Raises `ValueError` as `encode_tiled` does.
    """
    side = _side(tokenizer, tile)
    stride = tile // side
    height, width = codes.shape[1:3]
    result: Tensor | None = None
    for y in spans(height, side):
        for x in spans(width, side):
            part = tokenizer.decode(codes[:, y.low : y.high, x.low : x.high])
            if result is None:
                result = part.new_empty(len(part), part.shape[1], height * stride, width * stride)
            top, left = (y.first - y.low) * stride, (x.first - x.low) * stride
            bottom, right = (y.last - y.low) * stride, (x.last - x.low) * stride
            target = result[..., y.first * stride : y.last * stride, x.first * stride : x.last * stride]
            target.copy_(part[..., top:bottom, left:right])
    assert result is not None
    return result


def _side(tokenizer: Tokenizer, tile: int) -> int:
    grids = tokenizer.code_layout(tile, tile).grids
    if len(grids) != 1 or len(grids[0]) != 2:
        raise ValueError(f"tiles need codes on one 2-D grid, this tokenizer's grids are {grids}: leave tile unset")
    if grids[0][0] < 4:
        raise ValueError(
            f"a tile of {tile} pixels is {grids[0][0]} codes a side, which leaves no overlap: give 4 codes"
        )
    return grids[0][0]
