"""The codes of a picture as a map, and each code by itself: where it stands, what the picture has there."""

from __future__ import annotations

import colorsys
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tokenizers_vq.app import pictures
from tokenizers_vq.app.looking import Seen
from tokenizers_vq.codes import CodeLayout, Codes
from tokenizers_vq.evaluation.codecs import TokenizerCodec
from tokenizers_vq.evaluation.exemplars import Exemplars
from tokenizers_vq.evaluation.figures import display, enlarge, patch_rows
from tokenizers_vq.evaluation.usage import stream_name

_ROW = 16
"""codes of a one-dimensional grid in a row of the map"""
_LEGIBLE = 30
"""pixels of a cell from which on its number is written in it"""
_GOLDEN = 0.6180339887
"""turns of the hue from one code to the next: neighbours in number look apart"""


class Map(NamedTuple):
    """The codes of one stream (grid x level) of a picture."""

    codes: np.ndarray
    """int64 `(rows, columns)`, -1 where a row is not full"""
    picture: Image.Image

    def at(self, x: float, y: float) -> int | None:
        """The code under a pixel of the picture; None beside the codes."""
        rows, columns = self.codes.shape
        row, column = int(y * rows // self.picture.height), int(x * columns // self.picture.width)
        inside = 0 <= row < rows and 0 <= column < columns
        return int(self.codes[row, column]) if inside and self.codes[row, column] >= 0 else None

    @property
    def commonest(self) -> int:
        """The code that stands there most often, the lowest of several."""
        values, counts = np.unique(self.codes[self.codes >= 0], return_counts=True)
        return int(values[counts.argmax()])


class Found(NamedTuple):
    """One code in a picture."""

    code: int
    places: int
    """how often it stands there"""
    of: int
    """places in all"""
    where: Image.Image
    """the reconstruction, darker where another code stands"""
    patches: Image.Image | None
    """what the picture shows around its places, as far as the code has places"""
    alone: Image.Image
    """decoded with this code at all places of its stream, the other streams as in the picture"""


def streams(layout: CodeLayout) -> list[str]:
    """What each stream is called, in the layout's order."""
    return [stream_name(layout, stream) for stream in range(len(layout.sizes))]


def code_map(codes: Codes, layout: CodeLayout, stream: int) -> Map:
    """The map of one stream of one image's codes: a colour and, where there is room, a number for each code."""
    row = layout.split(codes)[stream][0].cpu().numpy()
    grid = layout.grids[stream // layout.levels]
    columns = grid[1] if len(grid) == 2 else min(_ROW, grid[0])
    filled = np.full(-(-len(row) // columns) * columns, -1, dtype=np.int64)
    filled[: len(row)] = row
    cells = filled.reshape(-1, columns)
    return Map(cells, _drawn(cells))


def find_code(codec: TokenizerCodec, seen: Seen, stream: int, code: int) -> Found:
    """Where a code stands in a picture, what is there, and what it looks like by itself."""
    height, width = seen.image.shape[-2:]
    layout = codec.layout(height, width)
    row = layout.split(seen.codes)[stream][0].cpu()
    here = row == code
    grid = layout.grids[stream // layout.levels]
    return Found(
        code,
        int(here.sum()),
        len(row),
        _where(seen.decoded, here.reshape(grid)) if len(grid) == 2 else pictures.shown(seen.decoded[0]),
        _patches(seen, layout, stream, code),
        pictures.shown(_alone(codec, seen, layout, stream, code)[0]),
    )


def _drawn(cells: np.ndarray) -> Image.Image:
    side = max(1, round(pictures.SHOWN / max(cells.shape)))
    values, inverse = np.unique(cells, return_inverse=True)
    colours = np.array([_colour(int(value)) for value in values], dtype=np.uint8)
    pixels = colours[inverse.reshape(cells.shape)]
    picture = Image.fromarray(pixels).resize((cells.shape[1] * side, cells.shape[0] * side), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    longest = len(str(int(cells.max())))
    if side >= _LEGIBLE:
        font = ImageFont.load_default(min(0.42 * side, 1.5 * side / longest))
        for (row, column), code in np.ndenumerate(cells):
            if code >= 0:
                dark = sum(_colour(int(code))) < 380
                middle = (column + 0.5) * side, (row + 0.5) * side
                draw.text(middle, str(code), "white" if dark else "black", font, anchor="mm")
    return picture


def _colour(code: int) -> tuple[int, int, int]:
    if code < 0:
        return 255, 255, 255
    lightness = 0.35 + 0.4 * (code * 0.7548776662 % 1)
    red, green, blue = colorsys.hls_to_rgb(code * _GOLDEN % 1, lightness, 0.65)
    return round(255 * red), round(255 * green), round(255 * blue)


def _where(decoded: Tensor, here: Tensor) -> Image.Image:
    """The reconstruction with the cells of `here` bool `(h, w)` as they are, the others dark and grey."""
    pixels = enlarge(display(decoded)[0], pictures.SHOWN)
    mask = here[None, None].float()
    mask = torch.nn.functional.interpolate(mask, size=pixels.shape[:2], mode="nearest-exact")[0, 0, :, :, None] > 0
    grey = pixels.float().mean(dim=2, keepdim=True).mul(0.5).byte().expand_as(pixels)
    return Image.fromarray(torch.where(mask, pixels, grey).numpy())


def _patches(seen: Seen, layout: CodeLayout, stream: int, code: int) -> Image.Image | None:
    height, width = seen.image.shape[-2:]
    exemplars = Exemplars(layout, height, width, stream=stream)
    exemplars.update(seen.image, seen.codes)
    found = exemplars.patches(code)
    return patch_rows([found], side=96) if found else None


def _alone(codec: TokenizerCodec, seen: Seen, layout: CodeLayout, stream: int, code: int) -> Tensor:
    tokens = layout.flatten(seen.codes)
    everywhere = layout.streams().to(tokens.device) == stream
    codes: Any = layout.unflatten(tokens.masked_fill(everywhere, code))
    return codec.decode((codes, layout.bits)).cpu()


def caption(found: Found, layout: CodeLayout, stream: int) -> str:
    """One line on a code."""
    times = "once" if found.places == 1 else f"{found.places} times"
    where = f" ({stream_name(layout, stream)})" if len(layout.sizes) > 1 else ""
    placeless = len(layout.grids[stream // layout.levels]) == 1
    note = " Codes of this grid stand in a row, and for no place in the picture." if placeless else ""
    return f"Code {found.code} stands {times} among {found.of} places{where}.{note}"
