"""An evaluation of samples as one self-contained HTML page, and as JSON beside it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prior.evaluation import Evaluated, Point
from tokenizers_vq.evaluation import figures, pages
from tokenizers_vq.folders import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

NAMES = {
    "feature_distance": "Feature distance",
    "precision": "Precision",
    "recall": "Recall",
    "density": "Density",
    "coverage": "Coverage",
    "class_score": "Class score",
    "inception_score": "Inception Score",
    "asked_class": "Of the asked class",
    "spread_within_class": "Spread within a class",
    "spread": "Spread",
    "copies": "Copies of training images",
    "nearest_training": "To the nearest training image",
}
_SHOWN = 64


def write_evaluation(evaluated: Evaluated, out: Path | str, *, title: str = "Samples of a prior") -> Path:
    """Write `evaluation.json` and `evaluation.html` into the folder `out`, the page last; returns its path."""
    out = Path(out)
    page = pages.template("samples.html.j2", "prior.measures").render(
        title=title,
        evaluated=evaluated,
        rows=rows(evaluated),
        skipped=[(NAMES[name], why) for name, why in evaluated.skipped.items()],
        samples=_grid(list(evaluated.images[:_SHOWN].split(1))),
        twins=_pairs(evaluated),
        curve=None if not evaluated.curve else [pages.uri(png) for png in _curve(evaluated)],
    )
    write_atomically(out / "evaluation.json", json.dumps(evaluated.to_dict(), indent=2) + "\n")
    write_atomically(out / "evaluation.html", page)
    return out / "evaluation.html"


def rows(evaluated: Evaluated) -> list[tuple[str, str, str, str, str]]:
    """Name, value, that of real images, which way is better, definition."""
    found = []
    for name, one in evaluated.measures.items():
        real = "" if one.real is None else _number(one.real)
        better = f"{one.better} is better" if one.better else "near that of real images is good"
        found.append((NAMES[name], _number(one.value), real, better, one.how))
    return found


def _number(value: float) -> str:
    return f"{value:#.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _grid(images: list[Tensor]) -> str:
    cells = [figures.display(image)[0] for image in images]
    lines = [cells[first : first + 16] for first in range(0, len(cells), 16)]
    return pages.uri(figures.image_png(figures.patch_rows(lines, side=64)))


def _pairs(evaluated: Evaluated) -> str | None:
    """Samples above, their nearest training images below."""
    if not evaluated.twins:
        return None
    lines = [[figures.display(pair[side][None])[0] for pair in evaluated.twins] for side in (0, 1)]
    return pages.uri(figures.image_png(figures.patch_rows(lines, side=64)))


def _curve(evaluated: Evaluated) -> tuple[bytes, bytes]:
    return figures.both(partial(_draw, evaluated.curve))


def _draw(points: tuple[Point, ...], theme: figures.Theme) -> Figure:
    """Precision against recall, a line for each field of the sampler."""
    figure = figures.blank(7, 4.2)
    axes = figure.add_subplot()
    fields = list(dict.fromkeys(point.setting.split("=")[0] for point in points))
    for field, colour in zip(fields, figures.colours(len(fields), theme), strict=True):
        line = [point for point in points if point.setting.split("=")[0] == field]
        axes.plot([p.recall for p in line], [p.precision for p in line], "o-", color=colour, label=field)
        for point in line:
            label = f"{point.setting.split('=')[1]} ({point.distance:.3g})"
            axes.annotate(label, (point.recall, point.precision), color=theme.muted, fontsize=7)
    figures.style(axes, theme, "recall (variety)", "precision (quality)", "in brackets: feature distance")
    figures.legend(axes, theme)
    return figure
