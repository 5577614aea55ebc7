"""A run's log as curves: losses, the discriminator, the balance of the two sides, the codebook."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenizers_vq.evaluation import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class History(NamedTuple):
    """The run that trained a tokenizer."""

    run: str
    """its folder"""
    lines: Sequence[Mapping[str, Any]]
    """of log.jsonl"""
    findings: Sequence[Any]
    """of the doctor: `what`, `when`, `evidence`, `advice`"""
    terms: tuple[str, ...] = ()
    """losses that the recipe names, as the log calls them"""
    chance: float | None = None
    """loss of a discriminator that cannot tell images from reconstructions"""


Series = list[tuple[int, float]]

LOSSES, ADVERSARY, SHARES = "Losses", "Adversary's losses", "Share of the gradient at the last layer"
ACCURACY, CLIPPED, ADA = "Share that the discriminator is right about", "Share of weights clipped", "ADA's p"
USAGE = "Share of codes in use"
OF_ONE = {SHARES, ACCURACY, CLIPPED, ADA, USAGE}
"""groups whose figures lie between 0 and 1"""
SIDES = (("of images", "real"), ("of reconstructions", "fake"))


def panels(history: History) -> list[tuple[str, dict[str, Series]]]:
    """Titled groups of curves that have at least one point."""
    wanted = {
        LOSSES: {name: name for name in dict.fromkeys(["reconstruction", *history.terms])},
        ADVERSARY: {"discriminator": "discriminator", "generator": "generator"},
        SHARES: _matching(history, r"share/(.+)"),
        "Discriminator's logits": {name: f"adversary/logits_{side}" for name, side in SIDES},
        "Gap of the logits": {"gap": "adversary/gap"},
        ACCURACY: {name: f"adversary/accuracy_{side}" for name, side in SIDES},
        CLIPPED: {"clipped": "adversary/clipped"},
        ADA: _matching(history, r"adversary/(p(?:_\d+)*)"),
        "Bottleneck's multiplier": _matching(history, r"adversary/(multiplier(?:_\d+)*)"),
        "Bottleneck's KL, nats a position": _matching(history, r"adversary/(kl(?:_\d+)*)"),
        USAGE: {"usage": "quantizer/usage"},
    }
    found = []
    for title, names in wanted.items():
        curves = {
            name: points
            for name, key in names.items()
            if (
                points := [(int(line["step"]), float(line[key])) for line in history.lines if _is_number(line.get(key))]
            )
        }
        if curves and not (title == SHARES and len(curves) == 1):  # alone it has all
            found.append((title, curves))
    return found


def _matching(history: History, pattern: str) -> dict[str, str]:
    """Figures of the log whose whole name matches, by what its group matches, in the order in which they came."""
    keys = dict.fromkeys(key for line in history.lines for key in line)
    return {match[1]: key for key in keys if (match := re.fullmatch(pattern, key))}


def draw_history(history: History, theme: figures.Theme) -> Figure:
    """One panel a group, losses on a logarithmic scale where all are positive and some ten times others."""
    shown = panels(history)
    columns = 2 if len(shown) > 1 else 1
    rows = -(-len(shown) // columns)
    figure = figures.blank(5.4 * columns, 2.9 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (title, curves) in zip(grid, shown, strict=False):
        for colour, (name, points) in zip(figures.colours(len(curves), theme), curves.items(), strict=True):
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, color=colour, linewidth=1.6, label=name, marker="." if len(points) == 1 else None)
        axes.ticklabel_format(axis="y", useOffset=False)
        if title == LOSSES and _wide([value for points in curves.values() for _, value in points]):
            axes.set_yscale("log")
        if title == ADVERSARY and history.chance is not None:
            axes.axhline(history.chance, color=theme.muted, linestyle="--", linewidth=1)
        if title in OF_ONE:
            axes.set_ylim(0, 1.05)
        figures.style(axes, theme, "step", "", title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(curves) > 1:
            figures.legend(axes, theme)
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    return figure


def _wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) >= 10 * min(values)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == value and abs(value) != float("inf")
