"""The numbers of an evaluation as a table: in the terminal and on the report's page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from tokenizers_vq.evaluation.measures import AIMS, Metric
from tokenizers_vq.evaluation.usage import Usage
from tokenizers_vq.text import cell


class Measured(Protocol):
    """What a table shows of an `Evaluation`."""

    @property
    def metrics(self) -> Mapping[str, Metric]: ...

    @property
    def usage(self) -> Usage: ...

    @property
    def speed(self) -> Mapping[str, Any]: ...

    @property
    def skipped(self) -> Mapping[str, str]: ...


LABELS = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "mse": "MSE",
    "lpips": "LPIPS",
    "fid": "FID",
    "feature_distance": "Feature distance",
    "spectrum_distance": "Spectrum distance",
    "patch_grid": "Patch grid",
}


MEANINGS = {
    "psnr": "closeness of the pixels in decibels",
    "ssim": "likeness of local structure, 1 = the same",
    "mse": "mean squared error of the pixels",
    "lpips": "distance of two images as a network sees them, 0 = the same",
    "fid": "distance between all reconstructions and all originals, by Inception's features",
    "feature_distance": "distance between all reconstructions and all originals, by a network's features; no FID",
    "spectrum_distance": "difference of the power spectra: blur and grain show here",
    "patch_grid": "step of pixels across patch borders over that inside patches; above the originals' = a visible grid",
}
"""what a metric says, for somebody who meets it for the first time"""


def label(name: str) -> str:
    """A metric's name as people write it."""
    kind, _, judge = name.partition("/")  # feature_distance/BACKBONE/LAYER
    return LABELS.get(kind, kind.replace("lpips_", "LPIPS ")) + (f" {judge}" if judge else "")


def definition(name: str, metric: Metric) -> str:
    """What the number says, and behind it in brackets everything that defines it."""
    parts = {key: value for key, value in metric.definition.items() if key not in ("note", "better")}
    text = "; ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in parts.items())
    kind = name.partition("/")[0]
    meaning = MEANINGS.get("lpips" if kind.startswith("lpips_") else kind)
    better = AIMS[metric.better]
    return f"{better} ({text})" if meaning is None else f"{meaning}; {better} ({text})"


def rows(evaluation: Measured) -> list[tuple[str, str, str]]:
    """(name, value with unit, what defines it) of every number, for tables."""
    table = []
    for name, metric in evaluation.metrics.items():
        table.append((label(name), f"{metric.value:.4g} {metric.unit}".strip(), definition(name, metric)))
    usage = evaluation.usage
    sample = f"{usage.images:,} images, {usage.tokens:,} codes"
    for index, stream in enumerate(usage.streams):
        which = f", {usage.name(index)}" if len(usage.streams) > 1 else ""
        table.append(
            (f"Usage{which}", f"{stream.usage:.2%}", f"{stream.used:,} of {stream.size:,} codes seen in {sample}")
        )
        table.append(
            (
                f"Perplexity{which}",
                f"{stream.perplexity:,.1f}",
                f"as if so many codes were used equally often; at most {stream.size:,} (exp of the entropy)",
            )
        )
        table.append(
            (
                f"Entropy{which}",
                f"{stream.entropy:.3f} bits",
                "information in one code, by how often each occurs in the whole split",
            )
        )
    table.append(
        (
            "Bits per pixel",
            f"{usage.bits_per_pixel:.4f}",
            "what the codes take as they are (log2 of the number of codes, a code)",
        )
    )
    table.append(
        (
            "Bits per pixel, entropy",
            f"{usage.entropy_bits_per_pixel:.4f}",
            "what they would take after ideal entropy coding (unigram entropy)",
        )
    )
    for verb in ("encode", "decode"):
        rate = evaluation.speed[f"{verb}_images_per_second"]
        threads = f"{evaluation.speed['threads']} thread{'' if evaluation.speed['threads'] == 1 else 's'}"
        where = f"{evaluation.speed['device']}, {evaluation.speed['precision']}, {threads}"
        table.append((f"{verb.capitalize()} speed", "-" if rate is None else f"{rate:,.1f} images/s", where))
    return table


def print_table(evaluation: Measured, title: str = "Evaluation") -> None:
    """Print the numbers as a table, and one line for each metric that was left out."""
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "value", "what it is", title=cell(title), title_justify="left")
    for row in rows(evaluation):
        table.add_row(*map(cell, row))
    console = Console()
    console.print(table)
    for name, reason in evaluation.skipped.items():
        console.print(cell(f"left out {label(name)}: {reason}"))


def _plain(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, (list, tuple)) else str(value)
