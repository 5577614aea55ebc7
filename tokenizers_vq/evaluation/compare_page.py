"""What a comparison is shown as: a table, a plot of rate against distortion, and one self-contained HTML page."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tokenizers_vq.evaluation import figures, pages
from tokenizers_vq.evaluation.compare import Comparison, Example, Row
from tokenizers_vq.evaluation.measures import AIMS, SIGNS
from tokenizers_vq.evaluation.tables import definition, label
from tokenizers_vq.text import cell


class Table(NamedTuple):
    """Numbers as text: one row a tokenizer or codec."""

    headers: list[str]
    rows: list[list[str]]


def table(comparison: Comparison) -> Table:
    """Every number of every row; `-` where a row has none."""
    names = metric_names(comparison)
    headers = ["", "bpp", "bpp, entropy", *[_header(comparison, name) for name in names]]
    headers += ["usage", "perplexity", "encode/s", "decode/s"]
    rows = []
    for row in comparison.rows:
        usage = row.usage
        values = [_number(row.metrics[name].value) if name in row.metrics else "-" for name in names]
        rows.append(
            [
                row.name,
                f"{row.bits_per_pixel:.3f}",
                "-" if row.entropy_bits_per_pixel is None else f"{row.entropy_bits_per_pixel:.3f}",
                *values,
                "-" if usage is None else f"{usage.usage:.1%}",
                "-" if usage is None else " / ".join(f"{stream.perplexity:,.0f}" for stream in usage.streams),
                *[_rate(row, verb) for verb in ("encode", "decode")],
            ]
        )
    return Table(headers, rows)


def metric_names(comparison: Comparison) -> list[str]:
    """Metrics that are shown; MSE, which says the same as PSNR, stands in the JSON only."""
    return list(dict.fromkeys(name for row in comparison.rows for name in row.metrics if name != "mse"))


def markdown(comparison: Comparison) -> str:
    """The table, what it was measured on, and what is missing, as Markdown."""
    headers, rows = table(comparison)
    lines = [" | ".join(headers), " | ".join(["---"] + ["---:"] * (len(headers) - 1)), *map(" | ".join, rows)]
    text = ["\n".join(f"| {line} |" for line in lines), f"{describe(comparison)}. {speed_text(comparison)}"]
    text += [f"- {note}" for note in comparison.notes] + [f"- {line}" for line in missing(comparison)]
    return "\n\n".join(text[:2]) + "\n\n" + "\n".join(text[2:]) + "\n"


def print_comparison(comparison: Comparison) -> None:
    """Print the table, what must be known to read it, and what was left out."""
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console()
    if not console.is_terminal:
        console = Console(width=180)  # a file has no width to keep to
    headers, rows = table(comparison)
    shown = RichTable(title=cell(describe(comparison)), title_justify="left")
    for index, header in enumerate(headers):
        shown.add_column(header, justify="right" if index else "left", overflow="fold")
    for row in rows:
        shown.add_row(*map(cell, row))
    console.print(shown)
    for line in (speed_text(comparison), *comparison.notes, *missing(comparison)):
        console.print(cell(line), highlight=False, soft_wrap=True)


def describe(comparison: Comparison) -> str:
    """Images, size and data in one line."""
    data = comparison.data
    height, width = data["image_size"]
    of = f" of {data['name']}" if data.get("name") else ""
    return f"{data['images']:,} images{of} at {height}x{width}"


def speed_text(comparison: Comparison) -> str:
    """Where the images a second were measured."""
    places: dict[str, list[str]] = {}
    for row in comparison.rows:
        speed = row.speed
        threads = f"{speed['threads']} thread{'s'[: speed['threads'] != 1]}"
        where = f"{speed['device']}, {speed['precision']}, {threads}"
        name = row.name if row.usage is not None else row.family
        if name not in places.setdefault(where, []):
            places[where].append(name)
    parts = "; ".join(f"{', '.join(names)} on {where}" for where, names in places.items())
    return f"Images a second, encode and decode: {parts}."


def missing(comparison: Comparison) -> list[str]:
    """One line for each metric and each codec that is not there."""
    return [f"left out {label(name)}: {reason}" for name, reason in comparison.skipped.items()] + [
        f"left out {name}: {reason}" for name, reason in comparison.left_out.items()
    ]


def nearest(comparison: Comparison, example: Example) -> dict[int, list[int]]:
    """For each tokenizer's row: the row of every image codec nearest in bits of this image, by ratio."""
    rows = comparison.rows
    families = dict.fromkeys(row.family for row in rows if row.usage is None)
    bits = [math.log(max(shown.bits_per_pixel or 0, 1e-9)) for shown in example.rows]
    found = {}
    for index, row in enumerate(rows):
        if row.usage is not None:

            def apart(other: int, own: float = bits[index]) -> float:
                return abs(bits[other] - own)

            found[index] = [
                min((other for other, that in enumerate(rows) if that.family == family), key=apart)
                for family in families
            ]
    return found


def panels(comparison: Comparison) -> list[tuple[str, list[figures.Curve]]]:
    """What is plotted over bits per pixel."""
    found = []
    for name in metric_names(comparison):
        rows = [row for row in comparison.rows if name in row.metrics]
        better, unit = rows[0].metrics[name].better, rows[0].metrics[name].unit
        groups: dict[str, list[Row]] = {}
        for row in rows:
            groups.setdefault(row.name if row.family == "tokenizer" else row.family, []).append(row)
        curves = []
        for title, group in groups.items():
            group = sorted(group, key=lambda row: row.bits_per_pixel)
            bits, values = [row.bits_per_pixel for row in group], [row.metrics[name].value for row in group]
            curves.append(
                figures.Curve(title, bits, values, group[0].usage is not None, group[0].entropy_bits_per_pixel)
            )
        found.append((f"{label(name)}{f' ({unit})' if unit else ''}, {AIMS[better]}", curves))
    return found


def write_comparison(comparison: Comparison, out: Path | str, *, title: str = "Tokenizers and codecs") -> Path:
    """Write `compare.html` (nothing outside it is needed), `compare.json`, `table.md` and `rate-distortion.png`.

    Each file is replaced atomically, the page last. Returns the page's path.
    """
    from tokenizers_vq.folders import write_atomically

    out = Path(out)
    plotted = panels(comparison)
    names = metric_names(comparison)
    page = pages.template("compare.html.j2").render(
        title=title,
        lead=describe(comparison),
        preprocessing=comparison.data.get("preprocessing"),
        notes=comparison.notes,
        missing=missing(comparison),
        plots=[
            (text, [pages.uri(png) for png in figures.both(partial(figures.rate_distortion, [(text, curves)], 1))])
            for text, curves in plotted
        ],
        table=table(comparison),
        speed=speed_text(comparison),
        kinds=["tokenizer" if row.usage is not None else "codec" for row in comparison.rows],
        tiles=_tiles(comparison),
        groups=[
            (index, row.name, f"{row.bits_per_pixel:.3f}")
            for index, row in enumerate(comparison.rows)
            if row.usage is not None
        ],
        keys=[example.key for example in comparison.examples],
        size=comparison.data["image_size"],
        definitions=[(label(name), _definition(comparison, name)) for name in names],
        rates=comparison.to_dict()["definitions"],
        identities=[(row.name, _identity(row)) for row in comparison.rows if row.usage is not None],
        versions=comparison.versions,
    )
    plot = figures.to_png(figures.rate_distortion(plotted, 2, figures.LIGHT), transparent=False)
    write_atomically(out / "rate-distortion.png", plot)
    write_atomically(out / "table.md", markdown(comparison))
    write_atomically(out / "compare.json", json.dumps(comparison.to_dict(), indent=2) + "\n")
    write_atomically(out / "compare.html", page)
    return out / "compare.html"


class _Tile(NamedTuple):
    """A row of the viewer."""

    name: str
    kind: str
    pictures: list[tuple[str, str, str, str]]
    """of each example: source, alternative text, caption, and the tokenizers' rows whose neighbour it is"""


def _tiles(comparison: Comparison) -> list[_Tile]:
    examples = list(enumerate(comparison.examples, 1))
    near = [nearest(comparison, example) for _, example in examples]
    bits = f"{8 * comparison.data['channels']} bpp"
    originals = []
    for number, example in examples:
        source = pages.uri(example.original.data, example.original.media_type)
        originals.append((source, f"original of {example.key or f'image {number}'}", bits, ""))
    tiles = [_Tile("Original", "original", originals)]
    for index, row in enumerate(comparison.rows):
        pictures = []
        for (number, example), close in zip(examples, near, strict=True):
            shown = example.rows[index]
            numbers = f"{shown.bits_per_pixel:.3f} bpp, {shown.psnr:.1f} dB"
            alt = f"{example.key or f'image {number}'} through {row.name}: {numbers}"
            beside = " ".join(str(own) for own, others in close.items() if index == own or index in others)
            pictures.append((pages.uri(shown.data, shown.media_type), alt, numbers, beside))
        tiles.append(_Tile(row.name, "tokenizer" if row.usage is not None else "codec", pictures))
    return tiles


def _number(value: float) -> str:
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}" if value >= 10 else f"{value:.4f}"


def _rate(row: Row, verb: str) -> str:
    rate = row.speed[f"{verb}_images_per_second"]
    return "-" if rate is None else f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def _header(comparison: Comparison, name: str) -> str:
    metric = next(row.metrics[name] for row in comparison.rows if name in row.metrics)
    return f"{label(name)}{f' {metric.unit}' if metric.unit else ''} {SIGNS[metric.better]}"


def _definition(comparison: Comparison, name: str) -> str:
    return definition(name, next(row.metrics[name] for row in comparison.rows if name in row.metrics))


def _identity(row: Row) -> str:
    assert row.usage is not None
    fingerprint = row.definition.get("fingerprint")
    return row.usage.described + (f"; fingerprint {fingerprint[:12]}" if fingerprint else "")
