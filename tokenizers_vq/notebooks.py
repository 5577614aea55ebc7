"""HTML with which objects show themselves in a notebook; every text in it is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from tokenizers_vq.text import printable

_STYLE = "text-align:left;vertical-align:top;padding:2px 12px 2px 0"
_MOST_CELLS = 48
"""cells of a drawn grid, a side: beyond it squares are too small to see"""


def table(rows: Iterable[Sequence[object]], title: str = "", headers: Sequence[str] = ()) -> str:
    """Rows as a table in HTML, with a title above and a headline where they are given."""
    head = "".join(f'<th style="{_STYLE}">{_text(header)}</th>' for header in headers)
    body = "".join("<tr>" + "".join(f'<td style="{_STYLE}">{_text(one)}</td>' for one in row) + "</tr>" for row in rows)
    above = f'<caption style="{_STYLE};font-weight:bold">{_text(title)}</caption>' if title else ""
    return f"<table>{above}{f'<tr>{head}</tr>' if head else ''}{body}</table>"


def grid(height: int, width: int, side: int = 120) -> str:
    """A grid of cells as a drawing (SVG), its longer side `side` pixels; one too fine to see is a plain rectangle."""
    cell = side / max(height, width)
    high, wide = height * cell, width * cell
    lines = []
    if max(height, width) <= _MOST_CELLS:
        lines = [f"M0 {row * cell:.2f}H{wide:.2f}" for row in range(1, height)]
        lines += [f"M{column * cell:.2f} 0V{high:.2f}" for column in range(1, width)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide + 2:.0f}" height="{max(high, 4) + 2:.0f}" '
        f'viewBox="-1 -1 {wide + 2:.2f} {high + 2:.2f}" fill="none" stroke="currentColor" '
        f'stroke-width="0.7" style="margin-right:12px;vertical-align:bottom">'
        f'<rect width="{wide:.2f}" height="{high:.2f}"/><path d="{"".join(lines)}"/></svg>'
    )


def _text(value: object) -> str:
    return escape(printable(value))
