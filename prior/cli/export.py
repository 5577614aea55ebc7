"""`tvq-prior export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenizers_vq.cli import common


def export(
    model: common.Model,
    out: Annotated[Path, typer.Option(help="folder to write; only an earlier export may be overwritten")],
    to: Annotated[
        str, typer.Option(metavar="llama", help="format: a folder of transformers' LlamaForCausalLM")
    ] = "llama",
) -> None:
    """Export a GPT prior to transformers; the result is checked against the prior itself."""
    from prior.export import export as write
    from prior.models import load

    report = write(load(model), to, out)
    compared = report["compared"]
    prompt = " ".join(map(str, report["prompt"]))
    first, last = report["conditions"]
    common.note(f"logits within {compared['error']:.1g} of at most {compared['largest']:.2g}, {compared['rows']} rows")
    common.note(
        f"prompt: {prompt}, the condition being a token from {first} to {last - 1}; {report['layout']['grids']} codes "
        f"follow, tokens 0 to {report['codes'][1] - 1}"
    )
    print(out)
