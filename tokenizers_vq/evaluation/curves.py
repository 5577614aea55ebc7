"""A run's log as curves: losses, the discriminator, the codebook."""

from __future__ import annotations

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


def panels(history: History) -> list[tuple[str, dict[str, Series]]]:
    """Titled groups of curves that have at least one point."""
    usage = {"usage": "quantizer/usage"}
    adversary = {"discriminator": "discriminator", "generator": "generator"}
    logits = {"of images": "adversary/logits_real", "of reconstructions": "adversary/logits_fake"}
    wanted = {
        "Losses": {name: name for name in dict.fromkeys(["reconstruction", *history.terms])},
        "Adversary's losses": adversary,
        "Discriminator's logits": logits,
        "Share of codes in use": usage,
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
        if curves:
            found.append((title, curves))
    return found


def draw_history(history: History, theme: figures.Theme) -> Figure:
    """One panel a group, losses on a logarithmic scale where all are positive."""
    shown = panels(history)
    columns = 2 if len(shown) > 1 else 1
    rows = -(-len(shown) // columns)
    figure = figures.blank(5.4 * columns, 2.9 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (title, curves) in zip(grid, shown, strict=False):
        for colour, (name, points) in zip(figures.colours(len(curves), theme), curves.items(), strict=True):
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, color=colour, linewidth=1.6, label=name, marker="." if len(points) == 1 else None)
        if title == "Losses" and all(value > 0 for points in curves.values() for _, value in points):
            axes.set_yscale("log")
        if title == "Adversary's losses" and history.chance is not None:
            axes.axhline(history.chance, color=theme.muted, linestyle="--", linewidth=1)
        if title == "Share of codes in use":
            axes.set_ylim(0, 1.05)
        figures.style(axes, theme, "step", "", title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(curves) > 1:
            figures.legend(axes, theme)
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    return figure


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == value and abs(value) != float("inf")
