"""A probe as a table in the terminal."""

from __future__ import annotations

from tokenizers_vq.evaluation.probe import Accuracy, Probe
from tokenizers_vq.text import cell


def print_probe(probe: Probe, title: str = "Probe") -> None:
    """Print the accuracies as a table, chance below them, and one line for what was left out."""
    from rich.console import Console
    from rich.table import Table

    table = Table("classifier of", "accuracy", "of an untrained network", title=cell(title), title_justify="left")
    for name, row in probe.rows.items():
        fresh = "-" if row.untrained is None else _share(row.untrained)
        table.add_row(name.replace("_", " "), _share(row.trained), fresh)
    table.add_row("nothing (chance)", _share(probe.chance), "-")
    console = Console()
    console.print(table)
    console.print(
        f"{len(probe.classes)} classes; {probe.learning:,} images to learn from, {probe.chance.images:,} held out; "
        "in brackets the 95 % interval (Wilson)"
    )
    for what, reason in probe.left_out.items():
        console.print(cell(f"left out {what}: {reason}"))


def _share(accuracy: Accuracy) -> str:
    low, high = accuracy.interval
    return f"{accuracy.value:.1%} ({low:.1%} to {high:.1%})"
