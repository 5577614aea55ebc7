"""Figures of a report, drawn without a display: each is a PNG, plots once for a light and once for a dark page."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from tokenizers_vq.evaluation.metrics import unit
from tokenizers_vq.evaluation.spectrum import Spectrum
from tokenizers_vq.evaluation.usage import Usage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

MAX_STREAMS = 8
"""streams that a figure shows; more would be unreadable"""
_WIDTH = 5.6
_NEIGHBOUR_QUERIES = 16384
_NEIGHBOUR_LIMIT = 2**18


class Theme(NamedTuple):
    """Colours of a plot on a transparent ground."""

    ink: str
    muted: str
    rule: str
    accent: str
    second: str
    colormap: str


LIGHT = Theme("#1b1f24", "#59636e", "#d9dee3", "#0b65c2", "#d1571b", "Blues")
DARK = Theme("#e8ebef", "#9aa5b1", "#39424d", "#6cb0ff", "#ff9d66", "Blues_r")


def both(draw: Callable[[Theme], Figure]) -> tuple[bytes, bytes]:
    """A plot for a light and for a dark page, as PNG."""
    return to_png(draw(LIGHT)), to_png(draw(DARK))


def to_png(figure: Figure, transparent: bool = True) -> bytes:
    """The figure on a transparent ground, or on white."""
    buffer = io.BytesIO()
    # no software or date in the file: equal reports are equal bytes
    figure.savefig(buffer, format="png", dpi=144, transparent=transparent, metadata={"Software": None})
    return buffer.getvalue()


def blank(width: float, height: float) -> Figure:
    """An empty figure of that size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # no global state, no display
    return figure


def style(axes: Axes, theme: Theme, x: str, y: str, title: str = "") -> None:
    """Labels, title, grid and frame as all plots have them."""
    from matplotlib.ticker import NullFormatter

    axes.set_xlabel(x, color=theme.muted)
    axes.set_ylabel(y, color=theme.muted)
    if title:
        axes.set_title(title, color=theme.ink, fontsize=10, loc="left")
    axes.tick_params(colors=theme.muted, which="both")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())  # a log axis of one decade would label every tick
    axes.grid(True, color=theme.rule, linewidth=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.rule)


def legend(axes: Axes, theme: Theme) -> None:
    """A legend without a frame."""
    axes.legend(frameon=False, labelcolor=theme.ink, fontsize=9)


def colours(count: int, theme: Theme) -> list[Any]:
    """Colours for `count` lines that can be told apart, and from the page."""
    import matplotlib

    if count <= 2:
        return [theme.accent, theme.second][:count]
    first, last = (0.35, 1.0) if theme is DARK else (0.1, 0.85)  # viridis goes from dark blue to light yellow
    return list(matplotlib.colormaps["viridis"](torch.linspace(first, last, count).numpy()))


def rank_frequency(usage: Usage, theme: Theme) -> Figure:
    """Share of each code against its rank, both logarithmic; a flat line is uniform use."""
    figure = blank(_WIDTH, 3.4)
    axes = figure.subplots()
    shown = usage.streams[:MAX_STREAMS]
    for index, (stream, colour) in enumerate(zip(shown, colours(len(shown), theme), strict=True)):
        frequency = stream.rank_frequency()
        # a log axis holds no more than a few hundred distinct ranks
        ranks = torch.logspace(0, math.log10(max(stream.used, 1)), 600).round().long().unique()
        axes.plot(
            ranks.numpy(),
            frequency[ranks - 1].numpy(),
            color=colour,
            linewidth=2,
            marker="o" if stream.used < 40 else None,
            markersize=3,
            label=usage.name(index),
        )
    for number, size in enumerate(sorted({stream.size for stream in shown})):
        label = "uniform use" if number == 0 else None
        axes.plot([1, size], [1 / size] * 2, color=theme.muted, linewidth=1, linestyle="--", label=label)
        axes.axvline(
            size, color=theme.muted, linewidth=1, linestyle=":", label="number of codes" if number == 0 else None
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    style(axes, theme, "rank of the code", "share of all codes")
    legend(axes, theme)
    return figure


def entropy_maps(usage: Usage, theme: Theme) -> Figure | None:
    """Entropy in bits of the codes seen at each position, one map a stream; None where none was counted."""
    shown = [(index, stream) for index, stream in enumerate(usage.streams) if stream.position_entropy is not None]
    shown = shown[:MAX_STREAMS]
    if not shown:
        return None
    columns = min(len(shown), 2 if len(shown) < 5 else 4)
    rows = math.ceil(len(shown) / columns)
    flat = all(stream.position_entropy is not None and stream.position_entropy.ndim == 1 for _, stream in shown)
    alone = columns == 1 and not flat
    figure = blank(_WIDTH if columns < 3 else 7.2, (3.4 if alone else 2.3) * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    for axes, (index, stream) in zip(grid.flat, shown, strict=False):
        entropy = stream.position_entropy
        assert entropy is not None
        title = usage.name(index) if len(usage.streams) > 1 else ""
        if entropy.ndim == 1:
            axes.bar(range(len(entropy)), entropy.numpy(), width=1.0, color=theme.accent)
            style(axes, theme, "position", "bits", title)
            continue
        picture = axes.imshow(entropy.numpy(), cmap=theme.colormap, vmin=0, vmax=max(entropy.max().item(), 1e-9))
        style(axes, theme, "", "", title)
        axes.grid(False)
        axes.set_xticks([])
        axes.set_yticks([])
        bar = figure.colorbar(picture, ax=axes, shrink=0.85)
        bar.ax.tick_params(colors=theme.muted)
        bar.outline.set_visible(False)
        bar.set_label("bits", color=theme.muted)
    return figure


class CodebookGeometry(NamedTuple):
    """Lengths of a codebook's vectors, and distances to their nearest neighbours."""

    name: str
    norms: Tensor
    """float32 (K,)"""
    neighbours: Tensor
    """float32 (Q,), of the first `Q` vectors asked"""
    used: Tensor
    """bool (K,), seen in the split"""

    def to_dict(self) -> dict[str, Any]:
        """Quantiles, JSON-able."""
        points = torch.tensor([0.0, 0.05, 0.5, 0.95, 1.0])
        names = ("min", "5%", "median", "95%", "max")
        return {
            "name": self.name,
            "norms": dict(zip(names, self.norms.quantile(points).tolist(), strict=True)),
            "nearest_neighbour_distances": dict(zip(names, self.neighbours.quantile(points).tolist(), strict=True)),
        }


def codebook_geometry(usage: Usage, quantizers: Sequence[Any]) -> list[CodebookGeometry]:
    """Geometry of every explicit codebook `(K, D)`; implicit ones (FSQ, LFQ) have none."""
    found = []
    for grid, quantizer in enumerate(quantizers):
        stream, vectors = grid * usage.layout.levels, getattr(quantizer, "codebook", None)
        if not isinstance(vectors, Tensor) or vectors.ndim != 2 or stream >= len(usage.streams):
            continue
        if vectors.shape[0] != usage.streams[stream].size or not 2 <= vectors.shape[0] <= _NEIGHBOUR_LIMIT:
            continue
        vectors = vectors.detach().float().cpu()
        used = torch.zeros(len(vectors), dtype=torch.bool)
        used[usage.streams[stream].codes] = True
        neighbours = []
        for start in range(0, min(len(vectors), _NEIGHBOUR_QUERIES), 512):
            rows = vectors[start : start + 512]
            distances = torch.cdist(rows, vectors)
            distances[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = math.inf
            neighbours.append(distances.min(1).values)
        name = usage.name(stream)
        found.append(CodebookGeometry(name, vectors.norm(dim=1), torch.cat(neighbours)[:_NEIGHBOUR_QUERIES], used))
    return found


def codebooks(geometry: Sequence[CodebookGeometry], theme: Theme) -> Figure:
    """Histograms of lengths (left) and nearest-neighbour distances (right); used codes against dead ones."""
    figure = blank(_WIDTH, 3.2 * len(geometry))
    grid = figure.subplots(len(geometry), 2, squeeze=False)
    for row, book in zip(grid, geometry, strict=True):
        for axes, values, label in (
            (row[0], book.norms, "length"),
            (row[1], book.neighbours, "distance to nearest code"),
        ):
            used = book.used[: len(values)]
            low, high = values.min().item(), values.max().item()
            # vectors of equal length (cosine codes) still need a bin of some width
            pad = max((high - low) * 0.02, 1e-2 * max(abs(high), 1e-6))
            for part, colour, name in ((used, theme.accent, "used"), (~used, theme.second, "dead")):
                bins = {"bins": 40, "range": (low - pad, high + pad)}
                axes.hist(
                    values[part].numpy(),
                    histtype="stepfilled",
                    color=colour,
                    alpha=0.65,
                    label=f"{name} ({int(part.sum()):,})",
                    **bins,
                )
            axes.set_yscale("log")
            axes.set_ylim(bottom=0.7)
            style(axes, theme, label, "codes", book.name if len(geometry) > 1 and axes is row[1] else "")
        row[0].legend(
            frameon=False, labelcolor=theme.ink, fontsize=9, ncols=2, loc="lower left", bbox_to_anchor=(-0.05, 1.0)
        )
    return figure


def spectrum(spectra: tuple[Spectrum, Spectrum], theme: Theme) -> Figure:
    """Mean log power of originals and reconstructions over spatial frequency."""
    figure = blank(_WIDTH, 3.2)
    axes = figure.subplots()
    for part, colour, name in zip(spectra, (theme.muted, theme.accent), ("originals", "reconstructions"), strict=True):
        axes.plot(part.frequencies.numpy(), part.decibels.numpy(), color=colour, linewidth=2, label=name)
    style(axes, theme, "cycles per pixel", "power (dB)")
    legend(axes, theme)
    return figure


class Curve(NamedTuple):
    """A codec's qualities, or a tokenizer's one point, in a plot of rate against distortion."""

    name: str
    bits: list[float]
    """a pixel, rising"""
    values: list[float]
    tokenizer: bool
    entropy_bits: float | None = None
    """of a tokenizer: a pixel, at the entropy of its codes"""


def rate_distortion(panels: Sequence[tuple[str, Sequence[Curve]]], columns: int, theme: Theme) -> Figure:
    """One panel a metric (its label, its curves) over bits per pixel, logarithmic.

    Image codecs are grey lines; tokenizers are coloured points, hollow at the entropy of their codes.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator

    rows = math.ceil(len(panels) / columns)
    # alone on a page, a panel is shown as narrow as a phone: the smaller the figure, the larger its letters
    figure = blank(4.6 if columns == 1 else 5 * columns, 3.6 * rows if columns == 1 else 3.3 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (label, curves) in zip(grid.flat, panels, strict=False):
        points = [curve for curve in curves if curve.tokenizer]
        shades = colours(len(points), theme)
        lines = itertools.cycle((("-", "s"), ("--", "^"), (":", "v")))
        shapes = itertools.cycle("oDPX*h<>")
        for curve in curves:
            if not curve.tokenizer:
                dash, mark = next(lines)
                axes.plot(
                    curve.bits,
                    curve.values,
                    color=theme.muted,
                    linestyle=dash,
                    marker=mark,
                    markersize=4,
                    label=curve.name,
                )
                continue
            colour, shape = shades[points.index(curve)], next(shapes)
            if curve.entropy_bits:
                ends = [curve.entropy_bits, *curve.bits]
                axes.plot(ends, curve.values * 2, color=colour, linewidth=1, zorder=3)
                axes.plot(ends[:1], curve.values, shape, markersize=8, color=colour, markerfacecolor="none", zorder=3)
            axes.plot(curve.bits, curve.values, shape, markersize=8, color=colour, label=curve.name, zorder=4)
        axes.set_xscale("log")
        style(axes, theme, "bits per pixel", label)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    handles, names = grid.flat[0].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside upper center",
        ncols=min(len(names), 3 if columns == 1 else 5),
        frameon=False,
        labelcolor=theme.ink,
        fontsize=9,
    )
    return figure


def display(images: Tensor) -> Tensor:
    """`(B, C, H, W)` in [-1, 1] -> uint8 `(B, H, W, 3)`: grey for one or two channels, else the first three."""
    shown = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    return unit(shown.detach().cpu()).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def enlarge(pixels: Tensor, side: int) -> Tensor:
    """uint8 `(H, W, 3)` repeated by a whole factor until its longer side is about `side`."""
    factor = max(1, round(side / max(pixels.shape[:2])))
    return pixels.repeat_interleave(factor, 0).repeat_interleave(factor, 1)


def reconstruction_grid(pairs: Sequence[tuple[Tensor, Tensor]]) -> Image.Image:
    """Originals above their reconstructions, both uint8 `(H, W, 3)`, on a transparent ground."""
    pairs = [(enlarge(original, 128), enlarge(reconstruction, 128)) for original, reconstruction in pairs]
    height, width = pairs[0][0].shape[:2]
    columns = min(len(pairs), 8 if width <= 160 else 4)
    cells = [
        (column * (width + 4), row * (2 * height + 14) + half * (height + 2), pair[half])
        for row in range(math.ceil(len(pairs) / columns))
        for column, pair in enumerate(pairs[row * columns : (row + 1) * columns])
        for half in (0, 1)
    ]
    return _paste(cells)


def patch_rows(rows: Sequence[Sequence[Tensor]], side: int = 56) -> Image.Image:
    """Rows of uint8 `(h, w, 3)` patches, enlarged to about `side` pixels."""
    cells, top = [], 0
    for row in rows:
        patches = [enlarge(patch, side) for patch in row]
        left = 0
        for patch in patches:
            cells.append((left, top, patch))
            left += patch.shape[1] + 3
        top += max((patch.shape[0] for patch in patches), default=side) + 6
    return _paste(cells)


def _paste(cells: Sequence[tuple[int, int, Tensor]]) -> Image.Image:
    from PIL import Image

    width = max((left + patch.shape[1] for left, _, patch in cells), default=1)
    height = max((top + patch.shape[0] for _, top, patch in cells), default=1)
    canvas = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    for left, top, patch in cells:
        canvas.paste(Image.fromarray(patch.numpy()), (left, top))
    return canvas


def image_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
