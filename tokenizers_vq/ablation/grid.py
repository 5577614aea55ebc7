"""The picture of a table: the same images down every column, the originals first."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tokenizers_vq.folders import write_atomically

_COLUMN, _GAP, _FONT = 128, 6, 14


def write_grid(path: Path, columns: Sequence[tuple[str, Path]], count: int) -> None:
    """Columns (label, file of `count` images one below the other) side by side; small images enlarged, not smoothed."""
    strips = []
    for label, file in columns:
        with Image.open(file) as opened:
            strips.append((label, opened.convert("RGB")))
    width, height = strips[0][1].width, strips[0][1].height // count
    factor = max(1, _COLUMN // width)
    width, height = width * factor, height * factor
    font = ImageFont.load_default(_FONT)
    letters = max(1, int(width // font.getlength("n")))
    labels = [textwrap.wrap(label, letters) for label, _ in strips]
    top = _GAP + max(len(lines) for lines in labels) * (_FONT + 4)
    grid = Image.new("RGB", (_GAP + len(strips) * (width + _GAP), top + count * (height + _GAP)), "white")
    draw = ImageDraw.Draw(grid)
    for index, (lines, (_, strip)) in enumerate(zip(labels, strips, strict=True)):
        left = _GAP + index * (width + _GAP)
        for line, text in enumerate(lines):
            draw.text((left, _GAP + line * (_FONT + 4) - 2), text, fill="black", font=font)
        side = strip.height // count
        for number in range(count):
            picture = strip.crop((0, number * side, strip.width, (number + 1) * side))
            picture = picture.resize((width, height), Image.Resampling.NEAREST)
            grid.paste(picture, (left, top + number * (height + _GAP)))
    buffer = io.BytesIO()
    grid.save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())
