"""`tvq export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tokenizers_vq.cli import common


def export(
    model: common.Model,
    to: Annotated[str, typer.Option(metavar="diffusers|torch|onnx", help="format to write")],
    out: Annotated[Path, typer.Option(help="folder to write; only an earlier export may be overwritten")],
) -> None:
    """Export a tokenizer to another runtime; the result is checked against the tokenizer itself."""
    from tokenizers_vq.export import export as write
    from tokenizers_vq.models import load

    report = write(load(model), to, out)
    if report.get("compared", True) is None:
        common.note("not compared: diffusers is not installed")
    for part, graph in report.get("graphs", {}).items():
        sizes = "any height and width" if graph["dynamic"] else f"{'x'.join(map(str, report['image_size']))} alone"
        because = f" ({graph['reason']})" if graph["reason"] else ""
        common.note(f"{part}: any batch, {sizes}{because}; {_said(graph['compared'])}")
    for part, compared in (report.get("compared") or {}).items():
        common.note(f"{part}: {_said(compared)}")
    for difference in report.get("differs", []):
        common.note(f"in diffusers, {difference}")
    print(out)


def _said(compared: dict[str, Any]) -> str:
    images = f"on {compared['images']} random images"
    if "error" in compared:
        return f"images within {compared['error']:.1g} {images}"
    ties = " (near-ties of two codes)" if compared["differ"] else ""
    return f"{compared['differ']:,} of {compared['codes']:,} codes differ{ties} {images}"
